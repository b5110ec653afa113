"""logistic-wine: multinomial logistic regression, 3 cultivars of wines."""

from unscheduled.lab.tasks._logistic import logistic_task

task = logistic_task("wine", examples=178, adamw=0.03125, schedule_free=0.0625, separable=True)
