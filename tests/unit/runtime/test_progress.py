import logging
import threading
import time

from pipeline.runtime import progress


def test_a_log_gets_rate_and_time_left(caplog, monkeypatch):
    monkeypatch.setattr(progress, "LOG_EVERY_S", 0.0)
    with caplog.at_level(logging.INFO, logger="fantrans"), progress.track("crop", total=4, unit="frames") as step:
        for _ in range(4):
            time.sleep(0.01)
            step(1)
    assert "crop: 1 of 4 frames" in caplog.messages[0]
    assert "s left" in caplog.messages[0]
    assert caplog.messages[-1].startswith("crop: 4 frames in")


def test_a_log_has_a_line_for_each_named_piece_and_a_listener_is_called_from_any_thread(caplog, monkeypatch):
    monkeypatch.setattr(progress, "LOG_EVERY_S", 0.0)
    heard = []

    def listener(description, percent):
        heard.append((description, percent))

    with progress.progress_listener(listener), progress.track("extract", total=8, unit="views", num_before=2) as step:
        worker = threading.Thread(target=step, args=(3, "block 7"))
        with caplog.at_level(logging.INFO, logger="fantrans"):
            worker.start()
            worker.join()
        step(3)
    assert caplog.messages[0].startswith("extract: block 7; 5 of 8 views, ")
    assert heard == [("extract", 25.0), ("extract", 62.5), ("extract", 100.0), ("extract", 100.0)]
    with progress.track("unheard", total=1, unit="views") as step:
        step(1)
    assert len(heard) == 4
