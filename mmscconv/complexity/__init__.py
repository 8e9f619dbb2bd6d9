"""Parameters and operations of models, and of every row of the paper's complexity columns.

Needs the OpenMMLab side for reading configs; counting alone needs torch.
"""

from mmscconv.complexity.configs import count_config, read_config
from mmscconv.complexity.counting import Complexity, count
from mmscconv.complexity.paper import compare

__all__ = ['Complexity', 'compare', 'count', 'count_config', 'read_config']
