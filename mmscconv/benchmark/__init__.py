"""Timing and memory of SCConv beside the convolution that it replaces; ``tools/benchmark.py`` is the command.

======================  ========================================================
``subjects``            what is measured: a layer, a backbone or a config's model
``candidates``          the forms of it that are compared, the baseline among them
``unofficial``          our re-composition of the popular unofficial module
``engines``             what runs a candidate: eager, torch.compile, ONNX Runtime
``checking``            refuses a candidate whose results are not the plain form's
``timing``, ``memory``  stopwatch, rounds, quartiles, ratios; what backward keeps
``session``             one setting after the other
``roofline``            SRU's bytes per second beside those of a plain copy
``reporting``           CSV, Markdown and the plot
======================  ========================================================
"""
