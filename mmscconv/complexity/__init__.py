"""Parameters and operations of models, and of every row of the paper's complexity columns.

Needs the OpenMMLab side for reading configs; counting alone needs torch.
"""

from mmscconv.complexity.configs import count_config, read_config
from mmscconv.complexity.counting import Complexity, count
from mmscconv.complexity.paper import PaperRow, compare, paper_rows

__all__ = ['Complexity', 'PaperRow', 'compare', 'count', 'count_config', 'paper_rows', 'read_config']
