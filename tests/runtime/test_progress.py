import logging

from tdaexp.runtime import progress


def test_without_a_terminal_there_is_one_line_at_the_end(caplog):
    with caplog.at_level(logging.INFO, logger="tdaexp"):
        assert list(progress.track(range(3), "blocks", total=5, done=2)) == [0, 1, 2]
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("blocks: 5 of 5 in ")


def test_a_line_a_minute_tells_the_time_left(caplog, monkeypatch):
    clock = iter([0.0, 61.0, 100.0, 130.0, 130.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO, logger="tdaexp"):
        list(progress.track(range(3), "blocks", total=4, done=0))
    assert caplog.messages[0] == "blocks: 1 of 4, 0.984 a minute, about 183 s left"
    assert caplog.messages[1] == "blocks: 3 of 4, 1.38 a minute, about 43 s left"


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    assert list(progress.track(range(3), "blocks", total=3)) == [0, 1, 2]
    assert "3/3" in capsys.readouterr().err
