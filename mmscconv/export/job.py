"""Export of a config's model with a checkpoint's weights to a file that is then compared with PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmscconv.checks.classes import check_checkpoint_classes, check_heads
from mmscconv.configuration import model_of
from mmscconv.errors import UserError
from mmscconv.export import custom_op, int8, openvino_file, writing
from mmscconv.export.agreement import Agreement, Inputs, batches, check, largest_difference
from mmscconv.export.formats import FORMATS
from mmscconv.export.graphs import Graph, graph_of
from mmscconv.export.image_inputs import Item, find_images, load_dataset, load_files, preprocess
from mmscconv.export.installed import check_installed
from mmscconv.export.metadata import class_names, describe
from mmscconv.export.target import files_of, format_of, kept_if_right
from mmscconv.foreign_errors import explained
from mmscconv.storage.checkpoint_match import require_filled
from mmscconv.storage.checkpoints import load_checkpoint, unwrapped, weights_of

# Enough to compare two programs; quantization needs more.
IMAGES, IMAGES_INT8 = 4, 500


@dataclass
class ExportJob:
    """One export with its settings; :meth:`prepare` checks them before the model is built.

    Attributes:
        cfg: Config of a classifier or a detector.
        checkpoint, trusted: Arguments of :func:`mmscconv.storage.checkpoints.load_checkpoint`.
        out: File to write; ``format`` is one of :data:`mmscconv.export.formats.FORMATS`, None to follow the
            suffix.
        images: Files and folders, empty for the config's test data; ``count`` images are used.
        size: (H, W) of the check in pixels, None for the test pipeline's size.
        deploy: Fold norms first.
        custom_op: Export SCConvs as :data:`mmscconv.export.custom_op.OP` and write its library beside ``out``.
        postprocess: End a detector's file in boxes, scores and labels.
        int8: Scope of quantization (:data:`mmscconv.export.int8.SCOPES`), or None.
        calibration: Number of images to calibrate on.
        tested: Class names of the config's test data, None with ``images``.
    """

    cfg: Config
    checkpoint: str
    out: Path
    format: str | None = None
    trusted: bool = False
    images: Sequence[str] = ()
    count: int | None = None
    size: tuple[int, int] | None = None
    deploy: bool = False
    custom_op: bool = False
    postprocess: bool = False
    int8: str | None = None
    calibration: int = 100
    items: list[Item] = field(default_factory=list, init=False)
    tested: Sequence[str] | None = field(default=None, init=False)
    weights: Mapping[str, Any] = field(default_factory=dict, init=False)

    def run(self) -> list[str]:
        """Write the files; return the lines that describe them.

        Raises:
            UserError: Settings, data or result are wrong; no file is left behind.
        """
        self.prepare()
        model = self.build()
        graph = graph_of(model, self.postprocess)
        if self.size and any(s % graph.divisor for s in self.size):
            raise UserError(f'--size {self.size[0]}x{self.size[1]}: both must be multiples of {graph.divisor}')
        images, shapes = preprocess(model, self.items[:IMAGES] if self.int8 else self.items)
        if self.format == 'pt2':
            writing.require_size(graph, images, self.size)
        names = class_names(self.cfg, model, self.weights, self.checkpoint, self.tested)
        metadata = describe(self.cfg, model, graph, names, self.deploy, self.custom_op)
        inputs = batches(graph, images, shapes, self.size, multiples=self.format == 'pt2')
        written = graph
        lines: list[str] = []
        write, open_file = writing.FUNCTIONS[cast('str', self.format)]
        with ExitStack() as files:
            if self.custom_op:
                written, lines = self.with_custom_op(graph)
                library = files.enter_context(kept_if_right(self.library))
                custom_op.copy_library(library)
                open_file = partial(writing.open_onnx, library=library)
            file, *_ = (files.enter_context(kept_if_right(f)) for f in self.files)
            write(written, images, metadata, file)
            found = check(graph, open_file(file), inputs, self.out.name)
            seen = self.own_precision(graph, file, inputs) if self.format == 'openvino' else []
        sizes = [f'{f} ({f.stat().st_size / 1e6:.2f} MB)' for f in self.files]
        lines = [*sizes, *lines, *self.check_lines(graph, found), *seen]
        return lines + self.quantized(model, self.int8) if self.int8 else lines

    @property
    def files(self) -> list[Path]:
        """``out`` and the files of its format beside it."""
        return files_of(self.out, cast('str', self.format))

    @property
    def library(self) -> Path:
        """The custom-op library's path, beside ``out``."""
        return self.out.with_suffix('.so')

    def with_custom_op(self, graph: Graph) -> tuple[Graph, list[str]]:
        """Return ``graph`` with its SCConvs exported as the custom op, and a line that describes the library.

        Raises:
            UserError: The model has no SCConv that the op can compute.
        """
        network, number = custom_op.with_custom_op(graph.network)
        if not number:
            raise UserError("--custom-op: the model has no SCConv of arrangement='S+C' that the op can compute")
        line = f'{self.library}: {custom_op.OP}, {number} nodes, compiled for the processor of this machine'
        return replace(graph, network=network), [line]

    def prepare(self) -> None:
        """Check the settings and read checkpoint and images.

        Raises:
            UserError: Settings that exclude each other, a missing package or compiler, a checkpoint or an image that
                cannot be read, or too few images for ``int8``.
        """
        self.format = format_of(self.out, self.format)
        classifier = self.cfg.get('default_scope') == 'mmpretrain'
        if self.postprocess and classifier:
            raise UserError('--postprocess is for detectors: a classifier has nothing after its logits')
        if self.int8 and not classifier:
            raise UserError('--int8 is for classifiers: of a detector, its effect on boxes is not measured here')
        format = FORMATS[self.format]
        options = {'--postprocess': self.postprocess, '--int8': self.int8, '--custom-op': self.custom_op}
        for option, wanted in options.items():
            if wanted and option not in format.options:
                suffixes = [other.suffix for other in FORMATS.values() if option in other.options]
                raise UserError(f'{option} writes {", ".join(suffixes)}, not {self.out.suffix}')
        if self.custom_op and not self.deploy:
            raise UserError('--custom-op is a deploy form: pass --deploy as well')
        if self.custom_op and self.int8:
            raise UserError('--custom-op computes in fp32: --int8 cannot quantize it, leave out one of them')
        if self.custom_op and self.library == self.out:
            raise UserError(f'--custom-op writes its library to {self.library}: --out needs another suffix')
        if format.extra:
            check_installed(format.title, format.extra)
        if self.custom_op:
            custom_op.library()
        if 'model' not in self.cfg:
            raise UserError(f'config has no model: {self.cfg.filename}')
        self.weights = load_checkpoint(self.checkpoint, self.trusted)
        import mmscconv.datasets
        import mmscconv.models  # noqa: F401

        init_default_scope(self.cfg.get('default_scope', 'mmengine'))
        count = self.count or (IMAGES_INT8 if self.int8 else IMAGES)
        if self.images:
            self.items = load_files(self.cfg, find_images(self.images), count)
        else:
            self.items, self.tested = load_dataset(self.cfg, count)
        if self.int8:
            int8.split(self.items, self.calibration)
            if self.tested is not None:  # labels count, and mmpretrain numbers the folders of each data set anew
                check_checkpoint_classes(self.weights, self.tested, self.checkpoint, must_fit=True)

    def build(self) -> nn.Module:
        """Return the model with the checkpoint's weights, in eval mode.

        Raises:
            UserError: The checkpoint is of another model or has weights that are not finite; for ``int8``, the model
                has fewer outputs than the test data classes.
        """
        with explained('cannot build what the config asks for'):
            model = MODELS.build(model_of(self.cfg))
        require_filled(model, self.weights, self.cfg, self.checkpoint)
        model.load_state_dict(unwrapped(weights_of(self.weights, self.checkpoint)), strict=False)
        model.eval()
        if self.int8 and self.tested is not None:
            check_heads(model, {'classes': self.tested}, "the config's test data", classifies=True)
        if self.deploy:
            from mmscconv.models import switch_to_deploy

            switch_to_deploy(model)
        return model

    def check_lines(self, graph: Graph, found: Sequence[Agreement]) -> list[str]:
        """Return the lines that describe inputs, outputs and the check."""
        reference = "mmdet's own predict" if graph.decoded else 'PyTorch'
        return [
            f'inputs: {", ".join(graph.inputs)}; outputs: {", ".join(graph.outputs)}',
            *(f'compared with {reference} on {line}' for line in found),
        ]

    def own_precision(self, graph: Graph, file: Path, inputs: Sequence[Inputs]) -> list[str]:
        """Return lines on the precision in which OpenVINO runs by itself on this machine, if that is another one.

        Nothing is judged by them: the file is right, and its user chooses the precision.
        """
        program = openvino_file.compile_file(file, None)
        precision = openvino_file.precision_of(program)
        if precision == 'fp32' or graph.decoded:
            return []
        worst = max(largest_difference(graph, openvino_file.runs(program), batch)[1] for batch in inputs)
        return [f'OpenVINO runs it in {precision} by itself on this machine: largest difference {worst:.1e}']

    def quantized(self, model: nn.Module, scope: str) -> list[str]:
        """Write the INT8 file beside ``out``; return its path and the lines of the comparison."""
        out = self.out.with_name(f'{self.out.stem}.int8{self.out.suffix}')
        calibration, rest = int8.split(self.items, self.calibration)
        with kept_if_right(out) as file:
            int8.quantize(self.out, file, model, calibration, scope)
            comparison = int8.compare(self.out, file, model, rest, len(calibration))
        return [str(out), *str(comparison).splitlines()]
