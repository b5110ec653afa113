"""logistic-pendigits: multinomial logistic regression, 10 digits as pen traces."""

from unscheduled.lab.tasks._logistic import logistic_task

task = logistic_task("pendigits", examples=10_992, adamw=0.0625, schedule_free=0.125)
