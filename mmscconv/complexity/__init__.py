"""Parameters and operations of models.

Reading configs needs OpenMMLab; counting alone needs torch.
"""

from mmscconv.complexity.config_table import config_table
from mmscconv.complexity.configs import count_config, counted_shape
from mmscconv.complexity.counting import Complexity, count
from mmscconv.complexity.detectors import detector_parts

__all__ = ['Complexity', 'config_table', 'count', 'count_config', 'counted_shape', 'detector_parts']
