"""logistic-segment: multinomial logistic regression, 7 kinds of image regions."""

from unscheduled.lab.tasks._logistic import logistic_task

task = logistic_task("segment", examples=2310, adamw=0.125, schedule_free=0.25)
