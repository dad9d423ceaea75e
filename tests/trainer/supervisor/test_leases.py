"""The protocol's rules about leases on the trainer's side, without a stream, a disk or a clock."""

import pytest

from trainer.supervisor.leases import MARGIN, Lease, Leases
from tunesmith.trainer.v1 import trainer_service_pb2 as pb

ONE, TWO = Lease("tune_1", 1), Lease("tune_2", 4)


def welcome(*verdicts: pb.HeldVerdict, lease: float = 10.0) -> pb.Welcome:
    message = pb.Welcome(held=verdicts)
    message.lease.FromMilliseconds(int(lease * 1000))
    return message


def verdict(lease: Lease, action: pb.HeldAction.ValueType) -> pb.HeldVerdict:
    return pb.HeldVerdict(lease=lease.message(), action=action)


def welcomed() -> Leases:
    leases = Leases()
    leases.welcomed(welcome(), hello_sent=0.0)
    return leases


def trusted(lease: Lease, sent: float) -> Leases:
    """Taken, and extended by a beat that was sent then."""
    leases = welcomed()
    leases.take(lease)
    leases.acknowledged(pb.HeartbeatAck(seq=leases.beat(now=sent), extended=[lease.message()]))
    return leases


def test_trust_ends_a_margin_before_the_lease() -> None:
    leases = trusted(ONE, sent=100.0)

    assert leases.is_trusted(ONE, 100.0 + 10.0 * (1 - MARGIN) - 0.01)
    assert not leases.is_trusted(ONE, 100.0 + 10.0 * (1 - MARGIN))


def test_an_assignment_is_not_trusted_before_a_beat_that_names_it_is_answered() -> None:
    leases = welcomed()
    before = leases.beat(now=0.0)

    leases.take(ONE)
    leases.acknowledged(pb.HeartbeatAck(seq=before))

    assert not leases.is_trusted(ONE, 0.0)


def test_a_beat_extends_trust_from_when_it_was_sent_not_answered() -> None:
    leases = welcomed()
    leases.take(ONE)
    seq = leases.beat(now=5.0)

    leases.acknowledged(pb.HeartbeatAck(seq=seq, extended=[ONE.message()]))

    assert leases.is_trusted(ONE, 13.9)
    assert not leases.is_trusted(ONE, 14.0)


def test_what_the_gateway_did_not_extend_runs_out() -> None:
    leases = trusted(ONE, sent=0.0)

    leases.acknowledged(pb.HeartbeatAck(seq=leases.beat(now=5.0)))

    assert leases.is_trusted(ONE, 8.9)
    assert not leases.is_trusted(ONE, 9.5)


def test_an_answer_does_not_extend_what_its_beat_did_not_name() -> None:
    leases = welcomed()
    seq = leases.beat(now=5.0)
    leases.take(ONE)

    leases.acknowledged(pb.HeartbeatAck(seq=seq, extended=[ONE.message()]))

    assert not leases.is_trusted(ONE, 5.0)


def test_silence_counts_from_the_oldest_beat_without_an_answer() -> None:
    leases = welcomed()
    first = leases.beat(now=1.0)
    leases.beat(now=6.0)
    assert leases.silence(8.0) == 7.0

    leases.acknowledged(pb.HeartbeatAck(seq=first))

    assert leases.silence(8.0) == 2.0


def test_welcome_starts_the_beats_anew() -> None:
    leases = welcomed()
    leases.beat(now=1.0)

    leases.welcomed(welcome(), hello_sent=50.0)

    assert leases.silence(50.0) == 0.0
    assert leases.beat(now=50.0) == 1


def test_continue_extends_and_what_welcome_leaves_out_is_lost() -> None:
    leases = welcomed()
    leases.take(ONE)
    leases.take(TWO)

    actions = leases.welcomed(welcome(verdict(ONE, pb.HELD_ACTION_CONTINUE)), hello_sent=100.0)

    assert actions == {ONE: pb.HELD_ACTION_CONTINUE, TWO: pb.HELD_ACTION_ABORT}
    assert leases.is_trusted(ONE, 108.9)
    assert not leases.is_trusted(TWO, 100.0)


def test_a_result_of_an_earlier_process_is_not_trusted_before_welcome() -> None:
    leases = Leases()
    leases.recover(ONE, step=400)
    assert not leases.is_trusted(ONE, 0.0)

    leases.welcomed(welcome(verdict(ONE, pb.HELD_ACTION_SEND_RESULT)), hello_sent=0.0)

    assert leases.is_trusted(ONE, 1.0)
    assert leases.restated() == [pb.HeldAttempt(lease=ONE.message(), step=400, result_pending=True)]


@pytest.mark.parametrize(
    ("engine", "taken", "draining", "reason"),
    [
        ("image/a", 0, False, None),
        ("image/b", 0, False, "UNKNOWN_ENGINE"),
        ("image/a", 1, False, "NO_FREE_SLOT"),
        ("image/a", 0, True, "DRAINING"),
    ],
)
def test_an_assignment_is_refused_with_its_reason(engine: str, taken: int, draining: bool, reason: str | None) -> None:
    leases = welcomed()
    for number in range(taken):
        leases.take(Lease(f"tune_{number}", 1))

    refusal = leases.refusal(pb.Assign(engine=engine), ["image/a"], 1, draining=draining)

    assert (refusal and refusal[0]) == reason


def test_a_step_never_falls() -> None:
    leases = welcomed()
    leases.take(ONE)

    leases.note_step(ONE, 7)
    leases.note_step(ONE, 3)

    assert leases.restated()[0].step == 7
