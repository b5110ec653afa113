"""logistic-glass: multinomial logistic regression, 6 kinds of glass."""

from unscheduled.lab.tasks._logistic import logistic_task

task = logistic_task("glass", examples=214, adamw=0.5, schedule_free=0.5)
