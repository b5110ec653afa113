"""logistic-satimage: multinomial logistic regression, 6 kinds of soil in satellite images."""

from unscheduled.lab.tasks._logistic import logistic_task

task = logistic_task("satimage", examples=6435, adamw=0.0625, schedule_free=0.0625)
