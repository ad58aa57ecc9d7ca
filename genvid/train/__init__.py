"""One trainer for every stage: tasks, optimisation, checkpoints, journal."""
