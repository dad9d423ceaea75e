"""The gateway's end of the protocol, message by message, without a stream, a database or a clock. What many of them do
together is in tests/simulation.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from gateway import protocol
from gateway.progress import LIMIT, ProgressBuffer
from gateway.protocol import Accept, GatewayEnd, Record, Renew, Say, Sign, SlotFreed, Withdraw
from gateway.status import Refusal
from store.attempts import HeldAction, LeaseRef, Renewal
from store.reports import Outcome
from tunesmith.trainer.v1 import trainer_service_pb2 as pb

ONE, TWO = LeaseRef("tune_1", 1, "trainer-1"), LeaseRef("tune_2", 4, "trainer-1")
BEAT = 5.0  # seconds


def lease(of: LeaseRef) -> pb.Lease:
    return pb.Lease(tune_id=of.tune_id, epoch=of.epoch)


def end(slots: int = 2, held: tuple[pb.HeldAttempt, ...] = ()) -> GatewayEnd:
    hello = pb.Hello(trainer_id="trainer-1", boot_id="boot-1", session_id="session-1", slots=slots, held=held)
    return GatewayEnd("trainer-1", hello, BEAT)


def running(*leases: LeaseRef) -> GatewayEnd:
    made = end()
    for each in leases:
        made.assigned(each)
        made.answered(Accept(each), True, 0.0)
    return made


def hear(end: GatewayEnd, **arm: Any) -> Any:
    return end.received(pb.TrainerMessage(**arm), 0.0)


def asked(end: GatewayEnd, **arm: Any) -> Any:
    """What is asked of the store when the message's turn has come."""
    [queued] = hear(end, **arm)
    assert isinstance(queued, protocol.Queue)
    return end.request(queued.message)


def test_welcome_has_a_verdict_for_each_attempt_and_believes_those_that_go_on() -> None:
    held = (pb.HeldAttempt(lease=lease(ONE)), pb.HeldAttempt(lease=lease(TWO), result_pending=True))
    made = end(held=(*held, pb.HeldAttempt(lease=pb.Lease(tune_id="tune_3", epoch=1))))
    stated = made.restated()
    actions = dict(zip([each.lease for each in stated], ["CONTINUE", "SEND_RESULT", "ABORT"], strict=True))

    to_accept = made.to_accept({each: HeldAction(action) for each, action in actions.items()})
    welcome = made.welcome({each: HeldAction(action) for each, action in actions.items()}, 45.0).welcome

    assert [each.result_pending for each in stated] == [False, True, False]
    assert to_accept == [Accept(ONE), Accept(TWO)]
    assert [each.action for each in welcome.held] == [1, 3, 2]
    assert len(made.holdings) == 2


def test_a_beat_is_asked_at_once_and_answered_with_what_the_store_says() -> None:
    made = running(ONE, TWO)
    beat = pb.Heartbeat(seq=7, free_slots=0, held=[pb.HeldAttempt(lease=lease(each)) for each in (ONE, TWO)])

    effects = hear(made, heartbeat=beat)
    answers = made.answered(Renew(7, [ONE, TWO]), Renewal(extended=[ONE], lost=[TWO], cancelled=[ONE]), 0.0)

    assert effects == [protocol.Ask(Renew(7, [ONE, TWO], []))]
    ack = pb.HeartbeatAck(seq=7, extended=[lease(ONE)], lost=[lease(TWO)], cancelled=[lease(ONE)])
    assert answers == [Say(pb.GatewayMessage(heartbeat_ack=ack)), SlotFreed()]


def test_a_beat_stands_for_the_accepted_that_it_has_overtaken() -> None:
    made = end()
    made.assigned(ONE)

    effects = hear(made, heartbeat=pb.Heartbeat(seq=1, held=[pb.HeldAttempt(lease=lease(ONE))]))
    made.answered(Renew(1, [ONE], [ONE]), Renewal(extended=[ONE], lost=[], cancelled=[]), 0.0)

    assert effects == [protocol.Ask(Renew(1, [ONE], [ONE]))]
    assert made.overdue(ONE, 0.0) is None


def test_a_beat_while_the_database_is_away_extends_nothing_and_loses_nothing() -> None:
    made = running(ONE, TWO)

    answers = made.answered(Renew(7, [ONE, TWO]), None, 0.0)

    assert answers == [Say(pb.GatewayMessage(heartbeat_ack=pb.HeartbeatAck(seq=7)))]
    assert len(made.holdings) == 2


def test_what_a_beat_does_not_name_is_held_no_more_unless_it_is_only_assigned() -> None:
    made = running(ONE)
    made.assigned(TWO)

    made.answered(Renew(1, []), Renewal([], [], []), 0.0)

    assert made.holdings.of(ONE.tune_id) == []
    assert made.holdings.of(TWO.tune_id) == [TWO]


def test_an_acceptance_that_comes_too_late_is_revoked() -> None:
    made = end()
    made.assigned(ONE)

    request = asked(made, accepted=pb.Accepted(lease=lease(ONE)))
    effects = made.answered(request, False, 0.0)

    assert request == Accept(ONE)
    revoke = pb.Revoke(lease=lease(ONE), reason="the lease is no longer yours")
    assert effects == [SlotFreed(), Say(pb.GatewayMessage(revoke=revoke))]


def test_who_rejects_a_tune_is_offered_nothing_for_a_beat() -> None:
    made = end()
    made.assigned(ONE)

    request = asked(made, rejected=pb.Rejected(lease=lease(ONE), reason="DRAINING"))
    effects = made.answered(request, True, 0.0)

    assert request == Withdraw(ONE, "DRAINING", rejected=True)
    assert effects == [SlotFreed()]
    assert (made.free_slots(BEAT - 0.1), made.free_slots(BEAT)) == (0, 2)


def test_whose_engine_has_died_is_offered_nothing_until_a_beat_says_that_it_is_back() -> None:
    made = running(ONE)
    starting = pb.Heartbeat(seq=1, free_slots=0, held=[pb.HeldAttempt(lease=lease(ONE))])

    hear(made, heartbeat=starting)
    request = asked(made, failed=pb.Failed(lease=lease(ONE), report_seq=1, reason="ENGINE_DIED", crashed=True))
    made.answered(request, Outcome.RECORDED, 0.0)
    meanwhile = made.free_slots(0.0)
    hear(made, heartbeat=pb.Heartbeat(seq=2, free_slots=2))

    assert meanwhile == 0
    assert made.free_slots(0.0) == 2


def test_whose_engine_has_died_is_offered_a_tune_again_though_no_beat_comes() -> None:
    made = running(ONE)

    request = asked(made, failed=pb.Failed(lease=lease(ONE), report_seq=1, reason="ENGINE_DIED", crashed=True))
    made.answered(request, Outcome.RECORDED, 0.0)

    assert (made.free_slots(BEAT - 0.1), made.free_slots(BEAT)) == (0, 2)


@pytest.mark.parametrize("answer", ["accepted", "rejected"])
def test_an_assignment_is_overdue_only_while_nothing_has_come(answer: str) -> None:
    made = end()
    for each in (ONE, TWO):
        made.assigned(each)
    hear(made, **{answer: {"lease": lease(ONE)}})

    assert made.overdue(ONE, 0.0) is None
    assert made.overdue(TWO, 0.0) == Withdraw(TWO, "NOT_ACCEPTED")


@pytest.mark.parametrize("withdrawn", [True, False])
def test_an_overdue_assignment_is_revoked_unless_it_was_accepted_after_all(withdrawn: bool) -> None:
    made = end()
    made.assigned(ONE)
    request = made.overdue(ONE, 0.0)
    assert request is not None

    effects = made.answered(request, withdrawn, 0.0)

    revoke = pb.Revoke(lease=lease(ONE), reason="it was not accepted in time")
    assert effects == ([SlotFreed(), Say(pb.GatewayMessage(revoke=revoke), droppable=True)] if withdrawn else [])


@pytest.mark.parametrize(
    ("arm", "outcome", "held"),
    [
        ("event", Outcome.RECORDED, 1),
        ("event", Outcome.STALE, 0),
        ("failed", Outcome.RECORDED, 0),
        ("failed", Outcome.ALREADY_RECORDED, 0),
    ],
)
def test_every_report_is_acknowledged_and_the_last_one_frees_its_slot(arm: str, outcome: Outcome, held: int) -> None:
    made = running(ONE)
    reports: dict[str, dict[str, Any]] = {"event": {"warning": pb.Warning()}, "failed": {"reason": "X"}}

    request = asked(made, **{arm: {"lease": lease(ONE), "report_seq": 3, **reports[arm]}})
    said = made.answered(request, outcome, 0.0)[0]

    assert isinstance(request, Record)
    assert request.ends == (arm == "failed")
    assert isinstance(said, Say)
    ack = pb.ReportAck(lease=lease(ONE), report_seq=3, outcome=protocol.OUTCOMES[outcome])
    assert said.message.report_ack == ack
    assert len(made.holdings) == held


def test_urls_of_a_lost_lease_are_a_revoke() -> None:
    made = running(ONE)
    wanted = pb.UrlRequest(lease=lease(ONE), objects=[pb.ObjectName(method=pb.METHOD_PUT, name="lora.safetensors")])

    request = asked(made, url_request=wanted)
    lost = made.answered(request, None, 0.0)

    assert request == Sign(ONE, wanted)
    assert [each.message.WhichOneof("message") for each in lost if isinstance(each, Say)] == ["revoke"]


def test_progress_of_what_the_trainer_does_not_hold_is_not_kept() -> None:
    made = running(ONE)

    mine = hear(made, progress=pb.Progress(lease=lease(ONE), step=3))
    others = hear(made, progress=pb.Progress(lease=lease(TWO), step=3))

    assert (mine, others) == ([protocol.ProgressDue()], [])
    assert list(made.holdings.due()) == [ONE]


def test_a_beats_answer_says_how_far_progress_is_stored_and_nothing_of_what_is_not() -> None:
    made = running(ONE, TWO)
    metrics = [pb.StepMetrics(step=step) for step in (1, 2, 3)]
    for each in (ONE, TWO):
        hear(made, progress=pb.Progress(lease=lease(each), step=3, metrics=metrics))
    buffer = made.holdings.due()[ONE]
    chunk = buffer.take()
    assert chunk is not None
    buffer.note_stored(chunk)
    hear(made, progress=pb.Progress(lease=lease(ONE), step=4, metrics=[pb.StepMetrics(step=4)]))

    said = made.answered(Renew(1, [ONE, TWO]), Renewal(extended=[ONE, TWO], lost=[], cancelled=[]), 0.0)
    away = made.answered(Renew(2, [ONE, TWO]), None, 0.0)

    stored = [pb.StoredProgress(lease=lease(ONE), step=3)]
    ack = pb.HeartbeatAck(seq=1, extended=[lease(ONE), lease(TWO)], stored=stored)
    assert said == [Say(pb.GatewayMessage(heartbeat_ack=ack))]
    assert away == [Say(pb.GatewayMessage(heartbeat_ack=pb.HeartbeatAck(seq=2)))]


def test_progress_that_cannot_be_stored_grows_coarser_evenly() -> None:
    buffer = ProgressBuffer()
    for step in range(1, 5 * LIMIT + 2, 50):
        metrics = [pb.StepMetrics(step=step + more) for more in range(50)]
        buffer.note(pb.Progress(lease=lease(ONE), step=step, metrics=metrics))
        chunk = buffer.take()
        assert chunk is not None
        buffer.put_back(chunk)

    chunk = buffer.take()

    assert chunk is not None
    kept = [each["step"] for each in chunk.metrics]
    assert len(kept) <= LIMIT
    assert kept[-1] == 5 * LIMIT + 50
    assert max(later - step for step, later in pairwise([0, *kept])) <= 16


def test_progress_waits_until_the_database_knows_that_the_tune_runs() -> None:
    made = end()
    made.assigned(ONE)
    hear(made, progress=pb.Progress(lease=lease(ONE), step=3))
    before = made.holdings.due()

    effects = made.answered(Accept(ONE), True, 0.0)

    assert before == {}
    assert effects == [protocol.ProgressDue()]
    assert list(made.holdings.due()) == [ONE]


def test_a_second_hello_is_a_breach() -> None:
    hello = pb.Hello(trainer_id="t", boot_id="b", session_id="s", engines=["e"], slots=1)

    with pytest.raises(Refusal, match="Hello"):
        hear(end(), hello=hello)


@pytest.mark.parametrize(
    ("session", "boot", "reason"),
    [
        ("session-1", "boot-1", None),
        ("session-2", "boot-1", "SESSION_REPLACED"),
        ("session-2", "boot-2", "DUPLICATE_TRAINER"),
    ],
)
def test_a_stream_ends_when_a_newer_one_stands_in_the_database(session: str, boot: str, reason: str | None) -> None:
    refusal = end().look(session, boot)

    assert (refusal and refusal.reason) == reason


def test_who_drains_is_given_nothing_more() -> None:
    made = end()

    hear(made, draining=pb.Draining(reason="maintenance"))

    assert made.free_slots(0.0) == 0


def test_a_drained_trainer_is_told_once_and_given_nothing_whatever_it_says() -> None:
    made = end()

    first, again = made.drained("a new disk"), made.drained("a new disk")
    hear(made, heartbeat=pb.Heartbeat(seq=1, free_slots=2))

    assert first == [Say(pb.GatewayMessage(drain=pb.Drain(reason="a new disk")), droppable=True)]
    assert again == []
    assert made.free_slots(0.0) == 0


def test_every_beats_answer_says_whether_the_trainer_is_drained_and_so_ends_it() -> None:
    made = end()
    made.drained("a new disk")

    while_drained = made.answered(Renew(1, []), None, 0.0)
    effects = made.drained(None)
    afterwards = made.answered(Renew(2, []), Renewal(extended=[], lost=[], cancelled=[]), 0.0)

    assert while_drained == [Say(pb.GatewayMessage(heartbeat_ack=pb.HeartbeatAck(seq=1, drained=True)))]
    assert effects == [SlotFreed()]
    assert afterwards == [Say(pb.GatewayMessage(heartbeat_ack=pb.HeartbeatAck(seq=2))), SlotFreed()]
    assert made.free_slots(0.0) == 2


def test_who_leaves_is_given_nothing_though_the_operator_resumes_it() -> None:
    made = end()
    hear(made, draining=pb.Draining(reason="maintenance"))

    made.drained("a new disk")
    made.drained(None)

    assert made.free_slots(0.0) == 0


def test_slots_that_the_trainer_cannot_fill_are_not_free() -> None:
    made = running(ONE)

    hear(made, heartbeat=pb.Heartbeat(seq=1, free_slots=0, held=[pb.HeldAttempt(lease=lease(ONE))]))

    assert made.free_slots(0.0) == 0
