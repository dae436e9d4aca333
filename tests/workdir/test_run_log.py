"""run.log: the lines of every run of a workdir, with dates, and why a run ended early."""

import logging
import re

import pytest

from side_jax.errors import InputError
from side_jax.workdir import run_log

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (.*)")


@pytest.fixture(autouse=True)
def level():
    logger = logging.getLogger("side_jax")
    before = logger.level
    logger.setLevel(logging.INFO)
    yield
    logger.setLevel(before)


def lines(folder):
    return [LINE.fullmatch(line)[1] for line in (folder / run_log.NAME).read_text(encoding="utf-8").splitlines()]


def test_what_is_said_in_the_block_is_kept_and_a_second_run_goes_on_below(tmp_path):
    inside = logging.getLogger("side_jax.stages.train")
    for number in (1, 2):
        with run_log.kept(tmp_path):
            inside.info("run %d, größer.", number)
        inside.info("outside.")
    assert lines(tmp_path) == ["run 1, größer.", "run 2, größer."]
    assert len(logging.getLogger("side_jax").handlers) == len(set(logging.getLogger("side_jax").handlers))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (InputError("config.x is 3; set it to 2."), "ended by InputError: config.x is 3; set it to 2."),
        (KeyboardInterrupt(), "ended by KeyboardInterrupt"),
    ],
)
def test_why_a_run_ended_is_its_last_line(tmp_path, error, said):

    def run():
        with run_log.kept(tmp_path):
            logging.getLogger("side_jax").info("began.")
            raise error

    with pytest.raises(type(error)):
        run()
    assert lines(tmp_path) == ["began.", said]


def test_a_run_that_says_nothing_leaves_no_file(tmp_path):
    with run_log.kept(tmp_path):
        pass
    assert not (tmp_path / run_log.NAME).exists()


def test_a_full_disk_does_not_fill_the_screen(tmp_path, capsys):
    with run_log.kept(tmp_path):
        (handler,) = (one for one in logging.getLogger("side_jax").handlers if isinstance(one, logging.FileHandler))
        handler.handleError(logging.makeLogRecord({}))
    assert capsys.readouterr().err == ""
