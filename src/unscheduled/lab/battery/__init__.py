"""The battery: races on many tasks of many kinds, to measure what a schedule-free run loses or gains."""
