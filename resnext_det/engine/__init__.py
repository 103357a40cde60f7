"""What both trainings share: command line, processes, configuration, data order, checkpoints and the training loop.

All of it stands on detectron2's engine (trainer, hooks, event storage), so both kinds of run look and resume alike.
"""
