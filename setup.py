"""Metadata and the .mim folder; everything else is in pyproject.toml."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
VERSION = re.search(r"__version__ = '(.+)'", (ROOT / 'mmscconv' / '__init__.py').read_text()).group(1)

ONEDL = [
    'torchvision',
    'onedl-mmengine==0.10.12',
    'onedl-mmcv==2.3.6',
    'onedl-mmdetection==3.5.1',
    'onedl-mmpretrain==1.3.6',
]
OFFICIAL = [
    'torchvision',
    'mmengine==0.10.7',
    'mmcv==2.1.0',
    'mmdet==3.3.0',
    'mmpretrain==1.2.0',
    'numpy<2',
    'setuptools<82',  # mmengine imports pkg_resources
]
DATA = ['globox>=2.9', 'matplotlib', 'pillow', 'pyyaml']
REPORT = ['jinja2', 'matplotlib', 'pillow', 'pycocotools']
DEMO = ['scikit-learn', *DATA, *REPORT]
EXPORT = ['onnx', 'onnxruntime', 'onnxscript']
OPENVINO = ['onnx', 'openvino']
NCNN = ['ncnn', 'pnnx']
DOCS = ['sphinx', 'furo', 'myst-parser']
COUNTERS = ['fvcore', 'ptflops', 'thop', 'torchinfo']  # tests compare their counts with ours
# tests/helpers/drawn.py turns off a part of hypothesis for which it has no setting.
TOOLS = ['hypothesis==6.170.17', 'mypy', 'pytest', 'pytest-cov', 'pytest-xdist', 'ruff', 'timm']
DEV = [*COUNTERS, *DEMO, *EXPORT, *OPENVINO, *NCNN, *DOCS, *TOOLS]


class BuildWithMim(build_py):
    """Copies configs, tools, weights and model index to OpenMMLab's place for them: mmscconv/.mim of the package."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / 'mmscconv' / '.mim'
        # Files of an earlier build would be shipped, too.
        shutil.rmtree(target, ignore_errors=True)
        for folder in ('configs', 'tools', 'weights'):
            shutil.copytree(ROOT / folder, target / folder, ignore=shutil.ignore_patterns('__pycache__'))
        shutil.copy(ROOT / 'model-index.yml', target)


setup(
    name='mmscconv',
    version=VERSION,
    description='SCConv (Spatial and Channel Reconstruction Convolution, CVPR 2023) for MMDetection and MMPretrain',
    long_description=(ROOT / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=find_packages(include=['mmscconv', 'mmscconv.*']),
    package_data={'mmscconv': ['paper/*.yaml', 'ops/csrc/*.[ch]', 'ops/csrc/onnxruntime/*.[ch]', 'report/*.j2']},
    # No OpenMMLab package: a required mmdet would be installed over the forks.
    install_requires=['torch>=2.4'],
    extras_require={
        'onedl': ONEDL,
        'official': OFFICIAL,
        'data': DATA,
        'report': REPORT,
        'demo': DEMO,
        'export': EXPORT,
        'openvino': OPENVINO,
        'ncnn': NCNN,
        'docs': DOCS,
        'dev': DEV,
    },
    cmdclass={'build_py': BuildWithMim},
)
