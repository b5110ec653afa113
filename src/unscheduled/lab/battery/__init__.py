"""The battery: many tasks of many kinds, with one question: what does a schedule-free run lose, or win?"""
