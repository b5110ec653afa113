"""logistic-vehicle: multinomial logistic regression, silhouettes of 4 vehicles."""

from unscheduled.lab.tasks._logistic import logistic_task

task = logistic_task("vehicle", examples=846, adamw=0.25, schedule_free=0.25)
