"""cora-gcn: a graph convolutional network classifies publications on machine learning by their words and citations.

Three fifths of the nodes are for training. The weight decay was chosen among 0.1, 0.2 and 0.4 for AdamW with cosine
decay, seeds 2000 and 2001.
"""

from unscheduled.lab.tasks._graph import graph_task

task = graph_task(
    "cora",
    steps=400,
    hidden=32,
    training_share=0.6,
    dropout=0.5,
    weight_decay=0.1,
    adamw=0.01,
    schedule_free=0.01,
)
