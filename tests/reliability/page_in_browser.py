#!/usr/bin/env python
"""Open a report's page in a headless Chromium, wide and narrow: no error, nothing cut off, no broken image."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

BROWSERS = ('chromium', 'chromium-browser', 'google-chrome')
WIDTHS = (1280, 400)
ASK = (
    'const images = [...document.images], broken = i => !i.complete || !i.naturalWidth;'
    'addEventListener("load", () => parent.postMessage([innerWidth, document.documentElement.scrollWidth,'
    ' images.length, images.filter(broken).length].join(), "*"))'
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('page', type=Path, help='report.html, as tools/report.py writes it')
    return parser.parse_args()


def browse(browser: str, page: str, width: int, script: str) -> tuple[list[str], str]:
    """Return what the browser logs, and what ``script`` at the end of the page says to its parent.

    The page stands in a frame of ``width``: a headless window is no narrower than 500 pixels.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / 'page.html').write_text(page.replace('</body>', f'<script>{script}</script></body>'))
        frame = folder / 'frame.html'
        frame.write_text(
            '<link rel="icon" href="data:,"><script>onmessage = event => { document.title = event.data }</script>'
            f'<iframe src="page.html" style="width: {width}px; height: 900px; border: 0"></iframe>'
        )
        command = [
            browser, '--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage',
            '--enable-logging=stderr', '--v=0', f'--user-data-dir={folder / "profile"}', '--window-size=1400,1000',
            '--virtual-time-budget=5000', '--dump-dom', f'file://{frame}',
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    title = re.search('<title>(.*?)</title>', done.stdout)
    return [line for line in done.stderr.splitlines() if 'CONSOLE' in line], title.group(1) if title else ''


def main() -> int:
    args = parse_args()
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print(f'error: none of {", ".join(BROWSERS)} is installed', file=sys.stderr)
        return 2
    page = args.page.read_text()
    # A browser that hides errors would find none.
    if len(browse(browser, page, WIDTHS[-1], 'console.error("broken"); nothing.here')[0]) != 2:
        print('error: the browser does not report two errors that were put into the page', file=sys.stderr)
        return 2
    failed = False
    for width in WIDTHS:
        errors, said = browse(browser, page, width, ASK)
        window, content, images, broken = map(int, said.split(','))
        good = window == width and content <= window and not broken and not errors
        failed |= not good
        print(
            f'{width} px: {"good" if good else "BAD"}: content {content} px, {images} images, {broken} broken, '
            f'{len(errors)} errors'
        )
        print(*errors, sep='\n', end='')
    return int(failed)


if __name__ == '__main__':
    sys.exit(main())
