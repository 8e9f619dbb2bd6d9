"""Parameters and operations of models.

Needs the OpenMMLab side for reading configs; counting alone needs torch.
"""

from mmscconv.complexity.config_table import config_table
from mmscconv.complexity.configs import count_config
from mmscconv.complexity.counting import Complexity, count
from mmscconv.complexity.detectors import detector_parts

__all__ = ['Complexity', 'config_table', 'count', 'count_config', 'detector_parts']
