"""logistic-dna: multinomial logistic regression, 3 kinds of splice junctions."""

from unscheduled.lab.tasks._logistic import logistic_task

task = logistic_task("dna", examples=3175, adamw=0.0625, schedule_free=0.125)
