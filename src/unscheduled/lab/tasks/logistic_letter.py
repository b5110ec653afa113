"""logistic-letter: multinomial logistic regression, 26 printed letters."""

from unscheduled.lab.tasks._logistic import logistic_task

task = logistic_task("letter", examples=20_000, adamw=0.0625, schedule_free=0.0625)
