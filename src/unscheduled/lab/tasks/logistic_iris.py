"""logistic-iris: multinomial logistic regression, flowers, 3 species."""

from unscheduled.lab.tasks._logistic import logistic_task

task = logistic_task("iris", examples=150, adamw=0.5, schedule_free=0.5)
