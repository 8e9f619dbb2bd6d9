"""Timing and memory of SCConv beside the convolution that it replaces; ``tools/benchmark.py`` is the command.

==========================  ====================================================
``subjects``                subjects of measurement: a layer, a backbone
``config_subject``          the whole model of a config as a subject
``candidates``              forms of a subject that are compared, the baseline among them
``unofficial``              our re-composition of the popular unofficial module
``jobs``                    one candidate under one setting, ready to run
``runners``                 execution: eager PyTorch, torch.compile, and the runtimes
``onnx, openvino, ncnn``    the runtimes of exported graphs
``correctness``             refuses a candidate whose results are not the plain form's
``timing``, ``memory``      stopwatch, rounds, quartiles, ratios; activation memory
``session``                 the settings of a run, one after the other
``matrix``                  the table by which machines are compared
``roofline``                SRU's bytes per second beside those of a plain copy
``profiling``               operators of a candidate and their times
``machine``                 processor, versions and threads, for the heads of the files
``reporting``               CSV, Markdown and the plot
==========================  ====================================================
"""
