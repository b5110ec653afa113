"""The lab: Schedule-Free runs raced against runs with a learning-rate schedule (extra ``lab``)."""
