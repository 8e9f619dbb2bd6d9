"""The paper's printed tables, our counts beside them, and measures of its claims."""

from mmscconv.paper.tables import PaperRow, paper_rows, printed

__all__ = ['PaperRow', 'paper_rows', 'printed']
