"""Tests that run in a process of their own, which stays for all with the same environment.

A test with the mark ``apart(NAME='value', ...)`` runs there: Triton decides when it is imported whether it interprets
its kernels. The process is a pytest that collects the same files, and runs a test when it gets its node id.
"""

import os
import subprocess
import sys
import tempfile
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import pytest
from _pytest.runner import runtestprotocol

from helpers.paths import ROOT

CHANNEL = 'TESTS_APART'  # environment variable with the file descriptor of the child's end


class Process:
    """A pytest with ``variables`` in its environment that waits for node ids of tests in ``files``."""

    def __init__(self, files, variables):
        self.pipe, theirs = Pipe()
        # Not measured for coverage, which makes Triton's interpreter three times slower.
        env = {k: v for k, v in os.environ.items() if not k.startswith(('TRITON_', 'MMSCCONV_', 'COV', 'PYTEST_'))}
        env['PYTHONPATH'] = os.pathsep.join([str(ROOT), str(ROOT / 'tests'), env.get('PYTHONPATH', '')])
        env |= {**variables, CHANNEL: str(theirs.fileno())}
        command = [sys.executable, '-m', 'pytest', '-q', '-p', 'helpers.apart', '-p', 'no:cacheprovider', *files]
        self.output = tempfile.TemporaryFile()  # noqa: SIM115, it stays open as long as the process runs
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=env, pass_fds=[theirs.fileno()], stdout=self.output, stderr=subprocess.STDOUT
        )
        theirs.close()

    def run(self, node_id):
        """Return the test's outcome, and the message where it failed or was skipped."""
        try:
            self.pipe.send(node_id)
            if self.pipe.poll(400):
                return self.pipe.recv()
            ending = 'no end after 400 seconds'
        except (EOFError, OSError):
            ending = 'the process ended'
        self.process.kill()
        self.process.wait()
        self.output.seek(0)
        return 'failed', f'{ending}: {self.output.read().decode()[-4000:]}'

    def close(self):
        self.pipe.close()
        self.process.wait(60)
        self.output.close()


class Apart:
    """The parent's side: processes by their environment."""

    def __init__(self):
        self.processes = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_pyfunc_call(self, pyfuncitem):
        mark = pyfuncitem.get_closest_marker('apart')
        if mark is None:
            return None
        key = tuple(sorted(mark.kwargs.items()))
        process = self.processes.get(key)
        if process is None or process.process.poll() is not None:
            marks = ((item, item.get_closest_marker('apart')) for item in pyfuncitem.session.items)
            files = {str(item.path) for item, other in marks if other and other.kwargs == mark.kwargs}
            process = Process(sorted(files), mark.kwargs)
            self.processes[key] = process
        outcome, text = process.run(pyfuncitem.nodeid)
        if outcome == 'failed':
            pytest.fail(text, pytrace=False)
        if outcome == 'skipped':
            pytest.skip(text)
        return True

    def pytest_sessionfinish(self):
        for process in self.processes.values():
            process.close()


def pytest_runtestloop(session):
    """Run tests as the parent names them; this module is a plugin of the child alone."""
    items = {item.nodeid: item for item in session.items}
    with Connection(int(os.environ.pop(CHANNEL))) as pipe:
        while True:
            try:
                item = items[pipe.recv()]
            except EOFError:
                return True
            outcome, text = 'passed', ''
            for report in runtestprotocol(item, log=False, nextitem=None):
                if report.failed:
                    outcome, text = 'failed', f'{report.longreprtext}\n{report.caplog}\n{report.capstdout}'
                elif report.skipped:
                    outcome, text = 'skipped', str(report.longrepr[-1])
            pipe.send((outcome, text))
