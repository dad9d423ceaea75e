"""The trainer's end of the protocol, message by message, without a stream, a disk or a clock. What many of them do
together is in tests/simulation.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from trainer.supervisor import protocol
from trainer.supervisor.effects import (
    Begin,
    Close,
    Delete,
    Effect,
    End,
    Ending,
    Forget,
    Greeted,
    Heed,
    Ignore,
    Leave,
    Stored,
    Upload,
)
from trainer.supervisor.leases import Lease
from trainer.supervisor.protocol import Ability, TrainerEnd
from trainer.supervisor.spool import Report
from tunesmith.trainer.v1 import trainer_service_pb2 as pb

ONE = Lease("tune_1", 1)
LENGTH, BEAT = 45.0, 5.0  # seconds


class Around:
    """The trainer around its protocol: two slots, reports and progress as the test puts them."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.steps = 0

    def ability(self) -> Ability:
        return Ability(engines=["image/a"], slots=2)

    def waiting(self, lease: Lease) -> Sequence[Report]:
        return [report for report in self.reports if report.lease == lease]

    def progress(self, lease: Lease) -> pb.Progress | None:
        steps, self.steps = self.steps, 0
        return pb.Progress(lease=lease.message(), step=steps) if steps else None

    def spool(self, file: Path | None = None, **arm: Any) -> Report:
        seq = len(self.reports) + 1
        self.reports.append(Report(ONE, seq, pb.TrainerMessage(**arm), file, uploaded=file is None))
        return self.reports[-1]


class Bench:
    """One end, what surrounds it, and what it has been told."""

    def __init__(self, gateways: int = 1) -> None:
        self.around = Around()
        self.end = TrainerEnd("trainer-1", "boot-1", "1.0", self.around, gateways)

    def connect(self, now: float = 0.0, action: pb.HeldAction.ValueType = pb.HELD_ACTION_CONTINUE) -> pb.Hello:
        """A new stream, up to Welcome and the beat that follows."""
        self.end.opened("session", now)
        message = self.end.next_message(now)
        assert message is not None
        welcome = pb.Welcome(held=[pb.HeldVerdict(lease=held.lease, action=action) for held in message.hello.held])
        welcome.lease.FromSeconds(int(LENGTH))
        welcome.heartbeat.FromSeconds(int(BEAT))
        self.told = self.hear(now, welcome=welcome)
        return message.hello

    def hear(self, now: float, **arm: Any) -> Sequence[Effect]:
        return self.end.received(pb.GatewayMessage(**arm), now)

    def said(self, now: float) -> list[str]:
        """The arms of all that is to be sent now."""
        return [str(message.WhichOneof("message")) for message in self.sent(now)]

    def sent(self, now: float) -> list[pb.TrainerMessage]:
        messages = []
        while (message := self.end.next_message(now)) is not None:
            messages.append(message)
        return messages

    def take(self, now: float = 0.0) -> Sequence[Effect]:
        """An Assign, and an answer to the beat that follows."""
        effects = self.hear(now, assign=assign())
        self.answer(self.sent(now), now)
        return effects

    def answer(self, sent: Sequence[pb.TrainerMessage], now: float) -> None:
        for beat in (message.heartbeat for message in sent if message.HasField("heartbeat")):
            self.hear(now, heartbeat_ack=pb.HeartbeatAck(seq=beat.seq, extended=[held.lease for held in beat.held]))


def assign() -> pb.Assign:
    return pb.Assign(lease=ONE.message(), engine="image/a")


def failed() -> pb.Failed:
    return pb.Failed(lease=ONE.message(), reason="X")


def warning() -> pb.Event:
    return pb.Event(lease=ONE.message(), warning=pb.Warning(reason="X"))


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    bench.connect()
    bench.answer(bench.sent(0.0), 0.0)
    return bench


def test_nothing_but_hello_is_said_before_welcome() -> None:
    bench = Bench()
    bench.end.opened("session", 0.0)

    bench.end.ask(pb.UrlRequest(request_id=1))
    bench.end.drain()

    assert bench.said(0.0) == ["hello"]


@pytest.mark.parametrize("arm", ["assign", "reconnect", "heartbeat_ack"])
def test_a_first_message_that_is_no_welcome_ends_the_stream(arm: str) -> None:
    bench = Bench()
    bench.end.opened("session", 0.0)
    bench.sent(0.0)

    effects = bench.hear(0.0, **{arm: {}})

    assert effects == [Close("the gateway's first message is no Welcome")]


def test_a_gateway_without_a_welcome_is_left_after_twenty_seconds() -> None:
    bench = Bench()
    bench.end.opened("session", 0.0)
    bench.sent(0.0)

    assert bench.end.look(19.9) == []
    assert bench.end.look(20.0) == [Close("no Welcome in 20 s")]


def test_three_beats_without_an_answer_end_the_stream(bench: Bench) -> None:
    beats = [bench.said(now) for now in (5.0, 10.0, 15.0)]

    assert beats == [["heartbeat"]] * 3
    assert bench.end.look(19.9) == []
    assert bench.end.look(20.0) == [Close("3 beats without an answer")]


@pytest.mark.parametrize(("gateways", "left"), [(1, False), (2, True)])
def test_a_gateway_that_extends_nothing_for_half_a_lease_is_left_where_there_is_another(
    gateways: int, left: bool
) -> None:
    bench = Bench(gateways)
    bench.connect()
    bench.answer(bench.sent(0.0), 0.0)
    bench.take()
    close = Close("this gateway has extended no lease for half of its length")

    told = [bench.hear(now, heartbeat_ack=pb.HeartbeatAck(seq=9)) for now in (LENGTH / 2 - 0.1, LENGTH / 2)]
    bench.end.lost()
    bench.connect(LENGTH / 2)
    again = [bench.hear(now, heartbeat_ack=pb.HeartbeatAck(seq=9)) for now in (LENGTH - 0.1, LENGTH)]

    assert told == again == [[], [close] if left else []]


def test_a_gateway_that_extends_a_lease_or_has_none_to_extend_is_not_left() -> None:
    bench = Bench(gateways=2)
    bench.connect()
    bench.answer(bench.sent(0.0), 0.0)
    idle = bench.hear(LENGTH, heartbeat_ack=pb.HeartbeatAck(seq=9))
    bench.take(LENGTH)

    extended = bench.hear(2 * LENGTH, heartbeat_ack=pb.HeartbeatAck(seq=9, extended=[ONE.message()]))

    assert idle == extended == []


def test_an_assignment_is_accepted_and_the_beat_after_it_makes_it_trusted(bench: Bench) -> None:
    effects = bench.hear(1.0, assign=assign())
    before = bench.end.leases.is_trusted(ONE, 1.0)
    sent = bench.sent(1.0)
    bench.answer(sent, 2.0)

    assert effects == [Begin(assign())]
    assert [message.WhichOneof("message") for message in sent] == ["accepted", "heartbeat"]
    assert not before
    assert bench.end.leases.is_trusted(ONE, 2.0)


def test_the_same_assignment_is_accepted_twice_and_begun_once(bench: Bench) -> None:
    bench.take()

    assert bench.hear(0.0, assign=assign()) == []
    assert bench.said(0.0) == ["accepted"]


def test_reports_go_in_order_and_wait_for_the_upload_of_an_earlier_one(bench: Bench) -> None:
    bench.take()
    bench.around.spool(event=warning())
    snapshot = bench.around.spool(Path("object"), snapshot_ready=pb.SnapshotReady(lease=ONE.message()))
    bench.around.spool(failed=failed())

    uploads = bench.end.spooled()
    before = bench.said(1.0)
    bench.end.uploaded(snapshot)

    assert uploads == [Upload(snapshot)]
    assert bench.end.spooled() == []
    assert before == ["event"]
    assert bench.said(1.0) == ["snapshot_ready", "failed"]


def test_no_more_reports_are_under_way_than_the_window_has(bench: Bench) -> None:
    bench.take()
    for _ in range(protocol.WINDOW + 1):
        bench.around.spool(event=warning())

    first = bench.said(1.0)
    del bench.around.reports[0]  # as Delete has it

    assert first == ["event"] * protocol.WINDOW
    assert bench.said(1.0) == ["event"]


def test_every_welcome_has_what_is_not_acknowledged_sent_again(bench: Bench) -> None:
    bench.take()
    bench.around.spool(event=warning())
    bench.around.spool(event=warning())
    first = bench.said(1.0)
    again = bench.said(1.0)

    bench.end.lost()
    hello = bench.connect(2.0)

    assert (first, again) == (["event", "event"], [])
    assert [held.lease for held in hello.held] == [ONE.message()]
    assert bench.said(2.0) == ["heartbeat", "event", "event"]


def test_past_the_lease_beats_go_on_and_nothing_else_is_said(bench: Bench) -> None:
    bench.take()
    bench.around.spool(event=warning())
    bench.around.steps = 3

    silent = bench.said(LENGTH)

    assert silent == ["heartbeat"]
    assert bench.said(LENGTH) == []


def test_progress_is_told_five_times_a_second_at_most_and_before_the_last_report(bench: Bench) -> None:
    bench.take()
    bench.around.steps = 1
    first = bench.said(1.0)
    bench.around.steps = 2
    too_soon = bench.said(1.1)
    wakes_at = bench.end.wakes_at(1.1)

    bench.around.spool(failed=failed())

    assert (first, too_soon) == (["progress"], [])
    assert wakes_at == pytest.approx(1.0 + protocol.PROGRESS_PERIOD)
    assert bench.said(1.1) == ["progress", "failed"]


def test_progress_goes_before_a_snapshot_from_which_another_trainer_may_go_on(bench: Bench) -> None:
    bench.take()
    bench.around.steps = 1
    bench.said(1.0)
    bench.around.steps = 2

    bench.around.spool(snapshot_ready=pb.SnapshotReady(lease=ONE.message(), step=2))

    assert bench.said(1.1) == ["progress", "snapshot_ready"]


def test_a_beats_answer_says_which_steps_need_not_be_told_again(bench: Bench) -> None:
    bench.take()
    stored = [pb.StoredProgress(lease=ONE.message(), step=7)]

    effects = bench.hear(1.0, heartbeat_ack=pb.HeartbeatAck(seq=1, extended=[ONE.message()], stored=stored))

    assert effects == [Stored(ONE, 7)]


@pytest.mark.parametrize("outcome", [pb.REPORT_OUTCOME_RECORDED, pb.REPORT_OUTCOME_ALREADY_RECORDED])
def test_a_recorded_report_is_deleted_and_the_last_one_ends_the_attempt(
    bench: Bench, outcome: pb.ReportOutcome.ValueType
) -> None:
    bench.take()
    bench.around.spool(event=warning())
    bench.around.spool(failed=failed())

    acks = [pb.ReportAck(lease=ONE.message(), report_seq=seq, outcome=outcome) for seq in (1, 2, 2)]
    effects = [bench.hear(1.0, report_ack=ack) for ack in acks]

    assert effects[:2] == [[Delete(ONE, 1)], [Forget(ONE, "failed")]]
    assert effects[2] == []
    assert ONE not in bench.end.leases


LOSSES: list[dict[str, Any]] = [
    {"revoke": pb.Revoke(lease=ONE.message())},
    {"heartbeat_ack": pb.HeartbeatAck(seq=9, lost=[ONE.message()])},
    {"report_ack": pb.ReportAck(lease=ONE.message(), report_seq=7, outcome=pb.REPORT_OUTCOME_STALE)},
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: next(iter(loss)))
def test_a_lost_lease_stops_the_attempt_and_not_a_word_of_it_follows(bench: Bench, loss: dict[str, Any]) -> None:
    bench.take()
    bench.around.spool(event=warning())

    effects = bench.hear(1.0, **loss)

    assert [type(effect) for effect in effects] == [End, Forget]
    assert bench.said(1.0) == []


def test_abort_at_welcome_is_a_lost_lease_too(bench: Bench) -> None:
    bench.take()
    bench.end.lost()

    bench.connect(1.0, pb.HELD_ACTION_ABORT)

    assert [type(effect) for effect in bench.told] == [Greeted, End, Forget]


def test_a_cancel_that_is_repeated_ends_the_attempt_once_and_a_lost_lease_outweighs_it(bench: Bench) -> None:
    bench.take()

    first = bench.hear(1.0, cancel=pb.Cancel(lease=ONE.message()))
    again = bench.hear(1.0, heartbeat_ack=pb.HeartbeatAck(cancelled=[ONE.message()]))
    lost = bench.hear(1.0, revoke=pb.Revoke(lease=ONE.message()))

    assert first == [End(ONE, Ending.CANCELLED)]
    assert again == []
    assert End(ONE, Ending.ABANDONED) in lost


def test_who_leaves_says_so_returns_all_and_ends_the_stream_when_that_is_recorded(bench: Bench) -> None:
    bench.take()

    effects = bench.end.drain()
    said = bench.said(1.0)
    refused = bench.hear(1.0, assign=pb.Assign(lease=pb.Lease(tune_id="tune_2", epoch=1), engine="image/a"))
    bench.around.spool(lease_returned=pb.LeaseReturned(lease=ONE.message()))
    ack = pb.ReportAck(lease=ONE.message(), report_seq=1, outcome=pb.REPORT_OUTCOME_RECORDED)

    assert effects == [End(ONE, Ending.RETURNED)]
    assert said == ["draining"]
    assert refused == []
    assert bench.said(1.0) == ["rejected", "lease_returned"]
    assert bench.hear(1.0, report_ack=ack) == [Forget(ONE, "lease_returned"), Leave()]


def drained_bench(bench: Bench) -> Bench:
    """With one tune at work, and its gateway has said Drain."""
    bench.take()
    assert bench.hear(1.0, drain=pb.Drain(reason="a new disk")) == [Heed(drained=True, why="a new disk")]
    return bench


def refused(bench: Bench, now: float) -> list[str]:
    """Why the next assignment is not taken."""
    bench.hear(now, assign=pb.Assign(lease=pb.Lease(tune_id="tune_2", epoch=1), engine="image/a"))
    return [message.rejected.reason for message in bench.sent(now) if message.HasField("rejected")]


def test_a_drained_trainer_takes_no_more_and_keeps_what_it_has(bench: Bench) -> None:
    drained_bench(bench)

    [beat] = bench.sent(1.0)

    assert (beat.heartbeat.free_slots, len(beat.heartbeat.held)) == (0, 1)
    assert refused(bench, 1.0) == ["DRAINING"]


def test_a_beats_answer_repeats_a_drain_that_was_lost(bench: Bench) -> None:
    told = bench.hear(1.0, heartbeat_ack=pb.HeartbeatAck(seq=1, drained=True))
    again = bench.hear(1.0, heartbeat_ack=pb.HeartbeatAck(seq=1, drained=True))

    assert (told, again) == ([Heed(drained=True)], [])
    assert refused(bench, 1.0) == ["DRAINING"]


def test_a_beats_answer_ends_a_drain_and_is_answered_with_free_slots_at_once(bench: Bench) -> None:
    drained_bench(bench)
    bench.sent(1.0)

    told = bench.hear(2.0, heartbeat_ack=pb.HeartbeatAck(seq=2))

    assert told == [Heed(drained=False)]
    assert [message.heartbeat.free_slots for message in bench.sent(2.0)] == [1]
    assert refused(bench, 2.0) == []


def test_a_drain_holds_for_one_stream(bench: Bench) -> None:
    drained_bench(bench)
    bench.end.lost()

    bench.connect(3.0)

    assert bench.said(3.0) == ["heartbeat"]
    assert refused(bench, 3.0) == []


def test_who_leaves_takes_no_more_though_the_drain_ends(bench: Bench) -> None:
    drained_bench(bench)
    bench.end.drain()
    bench.sent(1.0)

    bench.hear(2.0, heartbeat_ack=pb.HeartbeatAck(seq=2))

    assert refused(bench, 2.0) == ["DRAINING"]


def test_who_holds_nothing_leaves_at_once(bench: Bench) -> None:
    assert bench.end.drain() == [Leave()]


def test_a_result_of_an_earlier_process_is_restated_and_sent_after_welcome() -> None:
    bench = Bench()
    report = bench.around.spool(failed=failed())

    bench.end.recover(report)
    hello = bench.connect(0.0, pb.HELD_ACTION_SEND_RESULT)

    assert [held.result_pending for held in hello.held] == [True]
    assert bench.said(0.0) == ["heartbeat", "failed"]


def test_a_gateway_that_goes_away_is_left_for_another_one(bench: Bench) -> None:
    assert bench.hear(1.0, reconnect=pb.Reconnect(reason="bye")) == [Close("bye", redirected=True)]


def test_an_arm_that_is_not_known_is_ignored(bench: Bench) -> None:
    assert bench.hear(1.0) == [Ignore(None)]
