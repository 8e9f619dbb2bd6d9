"""Timing and memory of SCConv beside the convolution that it replaces; ``tools/benchmark.py`` is the command.

======================  ========================================================
``subjects``            subjects of measurement: a layer, a backbone, a config's model
``candidates``          forms of a subject that are compared, the baseline among them
``unofficial``          our re-composition of the popular unofficial module
``runners``             execution: eager PyTorch, torch.compile, ONNX Runtime
``correctness``         refuses a candidate whose results are not the plain form's
``timing``, ``memory``  stopwatch, rounds, quartiles, ratios; activation memory
``session``             the settings of a run, one after the other
``roofline``            SRU's bytes per second beside those of a plain copy
``reporting``           CSV, Markdown and the plot
======================  ========================================================
"""
