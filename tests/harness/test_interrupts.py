"""Only a person ends a run: what a part raises or exits with costs its own cells."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest
from aftershock.harness.core.errors import UsageError
from aftershock.harness.core.interrupts import UserInterrupt, contained, listening


@pytest.fixture
def heard() -> Iterator[None]:
    """SIGINT as it is for a command in the foreground, whatever these tests were started with."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


ENDS = {
    "sys.exit(0)": SystemExit(0),
    "sys.exit('bye')": SystemExit("bye"),
    "KeyboardInterrupt": KeyboardInterrupt(),
    "GeneratorExit": GeneratorExit(),
    "BaseExceptionGroup": BaseExceptionGroup("x", [SystemExit(1)]),
    "Own: mine": type("Own", (BaseException,), {})("mine"),
}


@pytest.mark.parametrize("said", ENDS)
def test_what_ends_the_program_becomes_an_error_with_its_reason(said: str) -> None:
    with pytest.raises(UsageError) as found, listening(), contained():
        raise ENDS[said]
    assert said in str(found.value)


@pytest.mark.parametrize("raised", [ValueError(), StopIteration(), UserInterrupt()])
def test_exceptions_and_a_persons_interrupt_pass(raised: BaseException) -> None:
    with pytest.raises(type(raised)), contained():
        raise raised


@pytest.mark.usefixtures("heard")
def test_a_signal_is_told_from_a_raised_exception() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(UserInterrupt), listening() as interrupt, contained():
        assert not interrupt.came
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(5)
    assert interrupt.came and signal.getsignal(signal.SIGINT) is before
    # A part may have caught it.
    with pytest.raises(UserInterrupt):
        interrupt.check()


@pytest.mark.usefixtures("heard")
def test_a_library_that_raises_its_own_interrupt_for_a_signal_ends_the_run_all_the_same() -> None:
    with pytest.raises(UserInterrupt), listening() as interrupt, contained(), interrupt.told():
        try:
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(5)
        except UserInterrupt:
            raise KeyboardInterrupt from None
    # Without a signal it is what a part raised.
    with pytest.raises(UsageError), listening() as interrupt, contained(), interrupt.told():
        raise KeyboardInterrupt


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with listening() as interrupt, contained():
            os.kill(os.getpid(), signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert not interrupt.came
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_the_main_thread_nothing_is_set() -> None:
    before, found = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with listening():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]
