"""logistic-vowel: multinomial logistic regression, 11 spoken vowels."""

from unscheduled.lab.tasks._logistic import logistic_task

task = logistic_task("vowel", examples=990, adamw=0.125, schedule_free=0.25)
