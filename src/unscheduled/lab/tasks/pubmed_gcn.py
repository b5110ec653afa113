"""pubmed-gcn: a graph convolutional network classifies publications on diabetes by their words and citations.

A fifth of the nodes is for training, so that a step is fast. The weight decay was chosen among 0.1, 0.2 and 0.4 for
AdamW with cosine decay, seeds 2000 and 2001.
"""

from unscheduled.lab.tasks._graph import graph_task

task = graph_task(
    "pubmed",
    steps=400,
    hidden=16,
    training_share=0.2,
    dropout=0.5,
    weight_decay=0.2,
    adamw=0.04,
    schedule_free=0.02,
)
