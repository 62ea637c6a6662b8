"""The core of msgbus, broken in one way each: what its unit tests have to notice.

A mutant is a piece of text in one file of `msgbus/`, and what stands there instead. Each breaks one promise of
`docs/explanation/guarantees.md` or `docs/explanation/delivery.md`, and names a test that fails with it.

Where the code of a mutant has changed, its test says so: write the mutant anew, so that the same promise is broken.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[2]
SECONDS = 100.0
"""For one run of a test: on a busy machine it takes a while to be imported."""

_FOREIGN = 9
_RUN = f"""
import os, sys, msgbus, pytest
if not os.path.samefile(os.path.dirname(msgbus.__file__), "msgbus"):
    sys.exit({_FOREIGN})
sys.exit(pytest.main(sys.argv[1:]))
"""


class Mutant(NamedTuple):
    """One fault.

    Attributes:
        name: says what the broken code does.
        promise: what it breaks, and where that is promised.
        file: under ``msgbus/``.
        old: a text that is in the file exactly once.
        new: what stands there instead.
        test: the node id, under ``tests/``, of a test that fails then.
    """

    name: str
    promise: str
    file: str
    old: str
    new: str
    test: str


def copy_of_the_project(to: pathlib.Path) -> pathlib.Path:
    """A folder with what the unit tests need, to be broken."""
    for package in ("msgbus", "tests"):
        shutil.copytree(ROOT / package, to / package, ignore=shutil.ignore_patterns("functional"))
    shutil.copy(ROOT / "pyproject.toml", to)
    return to


def why_unnoticed(mutant: Mutant, project: pathlib.Path) -> str | None:
    """Break a copy of the project, run the mutant's test there, and mend it.

    Returns:
        None where the test fails, as it should; else what is wrong, and what to do.
    """
    source = project / "msgbus" / mutant.file
    whole = source.read_text()
    found = whole.count(mutant.old)
    if found != 1:
        return (
            f"the text of mutant {mutant.name!r} is {found} times in msgbus/{mutant.file}, and has to be there once. "
            "The code has changed: in tests/mutants/core.py, write the mutant anew, so that it breaks the same promise"
        )
    for cached in source.parent.glob(f"__pycache__/{source.stem}.*"):
        cached.unlink()
    source.write_text(whole.replace(mutant.old, mutant.new))
    command = [sys.executable, "-B", "-c", _RUN, "-q", "-p", "no:cacheprovider", f"tests/{mutant.test}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV"))}
    try:
        ended = subprocess.run(
            command, cwd=project, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    finally:
        source.write_text(whole)
    last = (ended.stdout.strip().splitlines() or [""])[-1]
    if ended.returncode == 1 and " failed" in last:
        return None
    if ended.returncode == 0:
        return (
            f"mutant {mutant.name!r} survives {mutant.test}: that test does not hold the promise any more: "
            f"{mutant.promise}"
        )
    what = "another msgbus was imported" if ended.returncode == _FOREIGN else "pytest could not run it"
    return (
        f"the test of mutant {mutant.name!r} did not fail, but {what} (exit code {ended.returncode}): see that "
        f"{mutant.test} exists, and that the mutant is valid code\n{ended.stdout}{ended.stderr}"
    )


# Without any of these ten the rest is worth little: they are tried each time.
TEN = (
    Mutant(
        "never_gives_up_a_call",
        "A verb ends in time (guarantees, when all goes well).",
        "pending.py",
        "if now >= self.deadline:",
        "if now >= self.deadline + 1.0:",
        "core/test_pending.py::test_a_call_ends_at_its_deadline",
    ),
    Mutant(
        "runs_what_has_expired",
        "What comes too late is not run (guarantees, when all goes well).",
        "processing.py",
        "if deadline is not None and deadline <= Loop.now():\n            LOG",
        "if deadline is not None and deadline <= Loop.now() - 3600.0:\n            LOG",
        "core/test_server.py::test_what_has_expired_does_not_run",
    ),
    Mutant(
        "waits_where_nobody_is_there",
        "Nobody there is known at once (guarantees, when all goes well).",
        "client_call.py",
        'mandatory = pending.address.kind != "fanout"',
        "mandatory = False",
        "core/test_client.py::test_a_request_to_nobody_is_undeliverable",
    ),
    Mutant(
        "runs_what_may_have_run",
        "Under at_most_once a request that may have run before is not run (delivery, what the server does).",
        "processing.py",
        "if call.delivery.redelivered and not call.at_least_once:",
        "if False:",
        "core/test_processing.py::test_a_redelivered_call_is_declined_or_run_as_its_policy_says",
    ),
    Mutant(
        "accepts_before_it_runs_what_has_to_run",
        "Under at_least_once a request is accepted after it has run (delivery, what the server does).",
        "processing.py",
        "if call.delivery.redelivered and not call.at_least_once:",
        "call.delivery.accept()\n            if call.delivery.redelivered and not call.at_least_once:",
        "core/test_processing.py::test_a_delivery_is_accepted_when_its_policy_says",
    ),
    Mutant(
        "sends_no_unanswered_request_again",
        "Where a message system has lost a request, an at_least_once call is sent again 2 s after the connection is "
        "back (guarantees, when something fails).",
        "pending.py",
        "back = self._taken_at < up_since and",
        "back = False and",
        "core/test_pending.py::test_a_call_is_sent_again_when_the_connection_has_come_back_and_nothing_is_heard",
    ),
    Mutant(
        "runs_duplicates",
        "The same request again, at the same server, is dropped (delivery, duplicates).",
        "server_calls.py",
        "if done[unique_id] or not again:",
        "if False:",
        "core/test_server.py::test_the_same_request_runs_once",
    ),
    Mutant(
        "sends_an_answer_once",
        "Under at_least_once the answer is sent until the client has confirmed it (guarantees, when something fails).",
        "server_call.py",
        "now - self._sent_at >= self._resend_after",
        "now - self._sent_at >= 3600.0",
        "core/test_server_call.py::test_an_answer_is_sent_until_it_is_confirmed",
    ),
    Mutant(
        "ignores_credit",
        "A stream's generator waits where its client stops reading (guarantees, multicall).",
        "stream_sender.py",
        "self._taken + window_after(self._taken, self._window)",
        "self._taken + window_after(self._taken, 10 * self._window)",
        "core/test_stream_sender.py::test_the_generator_waits_for_its_client",
    ),
    Mutant(
        "imports_what_a_message_names",
        "An exception is an answer, and is made again only where its module is allowed: nothing else is imported.",
        "failures.py",
        "and module not in allowed_modules:",
        "and False:",
        "core/test_failures.py::test_a_module_that_is_not_listed_is_never_imported",
    ),
)

OTHERS = (
    # Deadlines
    Mutant(
        "a_call_gets_more_time_than_its_caller_has",
        "Calls that a method makes in turn get no more time than it has itself (guarantees, when all goes well).",
        "base_client.py",
        "deadline=bounded(now + self._seconds)",
        "deadline=now + self._seconds",
        "core/test_client.py::test_calls_of_a_handler_end_with_it",
    ),
    Mutant(
        "a_whole_stream_gets_more_time_than_its_caller_has",
        "Streams that a method makes in turn get no more time than it has itself (guarantees, when all goes well).",
        "base_client.py",
        "end=bounded(end),",
        "end=end,",
        "core/test_client.py::test_a_stream_inherits_the_deadline_of_its_whole",
    ),
    Mutant(
        "each_item_has_its_own_time_alone",
        "prepare(deadline=...) bounds the whole of a multicall (guarantees, when all goes well).",
        "pending_stream.py",
        "min(now + self.idle_timeout, self.end)",
        "now + self.idle_timeout",
        "core/test_pending_stream.py::test_timeout_of_each_item",
    ),
    Mutant(
        "time_spent_waiting_is_given_again",
        "The time that is left travels with the request (guarantees, when all goes well).",
        "base_client.py",
        "ttl = pending.deadline - Loop.now()\n        confirms",
        "ttl = pending.deadline - pending.began\n        confirms",
        "core/test_client.py::test_time_that_was_spent_waiting_for_the_window",
    ),
    Mutant(
        "a_cast_expires_unasked",
        "A cast has a limit only where its caller gave a timeout (guarantees, when all goes well).",
        "base_client.py",
        "ttl = None if self.timeout is None else left",
        "ttl = left",
        "core/test_client.py::test_prepare_changes_what_is_sent",
    ),
    Mutant(
        "gives_up_before_the_driver_does",
        "RabbitMQ is away: TransportUnavailable at the deadline (guarantees, when something fails).",
        "base_client.py",
        "self._repeatable, ttl * SEND_SHARE)",
        "self._repeatable, ttl + 10.0)",
        "core/test_client.py::test_the_driver_gives_its_reason_before_the_call_times_out",
    ),
    Mutant(
        "a_stream_has_no_deadline_of_its_whole",
        "The deadline of a whole stream holds for its server too (guarantees, when all goes well).",
        "processing.py",
        "return call.deadline + hints.end - hints.ttl",
        "return None",
        "core/test_current.py::test_a_generator",
    ),
    Mutant(
        "a_casts_deadline_is_forgotten_between_tries",
        "A cast whose deadline passes before it could be run again goes to the dead letters (delivery, how "
        "attempts are counted).",
        "failed_casts.py",
        "if call.deadline is not None and Loop.now() + delay >= call.deadline:",
        "if False:",
        "core/test_attempts.py::test_a_cast_whose_deadline_passes_before_its_next_try",
    ),
    # Many casts at once
    Mutant(
        "many_casts_are_not_waited_for",
        "`cast_many` returns when all casts are confirmed (guarantees, when all goes well).",
        "casts.py",
        "        self._wait(0)\n        return self._result()",
        "        return self._result()",
        "core/test_casts.py::test_it_returns_when_all_are_confirmed",
    ),
    Mutant(
        "many_casts_go_on_after_an_error",
        "`cast_many` sends nothing after an error (guarantees, when something fails).",
        "casts.py",
        "            if self._failed:\n                break\n            try:",
        "            try:",
        "core/test_casts.py::test_the_first_error_stops_it",
    ),
    Mutant(
        "many_casts_leave_no_room",
        "`cast_many` leaves half of the send window to others.",
        "casts.py",
        "max(1, transport.window.size // 2)",
        "transport.window.size",
        "core/test_casts.py::test_half_of_the_window_is_left_to_others",
    ),
    Mutant(
        "many_casts_keep_their_places",
        "Requests that are finished make room for others.",
        "casts.py",
        "        self._transport.window.release()\n",
        "",
        "core/test_casts.py::test_it_returns_when_all_are_confirmed",
    ),
    Mutant(
        "many_casts_are_certain_to_have_failed",
        "`cast_many` says which casts may have been delivered (guarantees, when something fails).",
        "base_transport.py",
        "and error.maybe_delivered and not repeated:",
        "and False:",
        "core/test_casts.py::test_the_first_error_stops_it",
    ),
    Mutant(
        "a_child_uses_the_ids_of_its_parent",
        "Requests do not affect one another (guarantees, when all goes well), also those of a forked child.",
        "message.py",
        "os.register_at_fork(after_in_child=_ids.clear)",
        "",
        "core/test_forking.py::test_a_child_makes_ids_of_its_own",
    ),
    # Nobody there
    Mutant(
        "fanout_to_nobody_fails",
        "Only fanout_cast takes nobody's being there for success (guarantees, when all goes well).",
        "client.py",
        "mandatory=not is_fanout",
        "mandatory=True",
        "core/test_client.py::test_fanout_to_nobody",
    ),
    Mutant(
        "calls_undeliverable_what_may_have_run",
        "What may have run is never called undeliverable (guarantees, when all goes well).",
        "sending.py",
        "may_pass = isinstance(error, MessageUndeliverable | ",
        "may_pass = isinstance(error, ",
        "core/test_transport.py::test_after_an_unknown_outcome_a_refusal_is_not_final",
    ),
    Mutant(
        "forgets_the_unknown_outcome",
        "The error at the deadline says what became of the first try and of the last (guarantees, when all goes well).",
        "sending.py",
        "if first is None or first is last or",
        "if True or",
        "core/test_transport.py::test_at_the_deadline_the_error_names_the_unknown_outcome",
    ),
    Mutant(
        "nobody_there_is_final_just_after_a_reconnect",
        "After a restart of the message system the servers may come back later (guarantees, when something fails).",
        "base_transport.py",
        'return up_since + float(self.option("rpc_reply_grace"))',
        "return 0.0",
        "core/test_calls_and_servers.py::test_nobody_there_is_not_final_just_after_a_reconnect",
    ),
    Mutant(
        "sends_again_what_nobody_waits_for",
        "A request whose call is over is not run by who comes later (guarantees, what comes too late is not run).",
        "sending.py",
        "if self.pending is not None and self.pending not in self.sender.router:",
        "if False:",
        "core/test_transport.py::test_nothing_is_sent_again_for_a_call_that_is_over",
    ),
    Mutant(
        "drops_the_answer_of_a_client_that_is_away",
        "The client's connection breaks: the answer waits for it (guarantees, when something fails).",
        "server_call.py",
        "retry_undeliverable=now + owner.grace",
        "retry_undeliverable=now",
        "core/test_server_call.py::test_an_answer_for_a_client_that_comes_back",
    ),
    Mutant(
        "an_answer_waits_for_the_grace_only",
        "RabbitMQ restarts while a request runs: the answer is sent when it is back, as long as the client waits "
        "(guarantees, when something fails).",
        "server_call.py",
        "            end = self._reply_deadline\n",
        "            pass\n",
        "core/test_server_call.py::test_an_answer_waits_as_long_as_its_client",
    ),
    # At most once
    Mutant(
        "at_most_once_runs_without_being_accepted",
        "Under at_most_once a request is accepted before it runs (delivery, what the server does).",
        "method_runner.py",
        "call.accepted = call.delivery.accept()",
        "call.accepted = True",
        "core/test_processing.py::test_a_delivery_is_accepted_when_its_policy_says",
    ),
    Mutant(
        "runs_what_could_not_be_accepted",
        "Under at_most_once a request is never run twice (delivery).",
        "method_runner.py",
        "if not call.accepted:",
        "if False:",
        "core/test_processing.py::test_a_request_that_cannot_be_accepted_is_not_run",
    ),
    Mutant(
        "a_cast_that_may_have_run_vanishes",
        "Under at_most_once a cast that may have run before goes to the dead letters (delivery, what the server does).",
        "processing.py",
        "self.failed_casts.give_up(call, reason, 1, [])",
        "self.calls.finish(call, done=True)",
        "core/test_server.py::test_a_cast_that_may_have_run",
    ),
    Mutant(
        "waits_after_the_grace",
        "A call that was declined raises OutcomeUnknown after rpc_reply_grace (delivery, what the server does).",
        "pending.py",
        "if self._uncertain_since is not None and now >= self._uncertain_since + self.grace:",
        "if self._uncertain_since is not None and now >= self._uncertain_since + 2 * self.grace:",
        "core/test_pending.py::test_outcome_unknown_after_the_grace",
    ),
    Mutant(
        "at_most_once_is_sent_again_after_an_unknown_outcome",
        "The connection breaks while a cast is sent: OutcomeUnknown at once under at_most_once (guarantees, when "
        "something fails).",
        "client.py",
        "repeat=self._repeatable,\n                fallback=None",
        "repeat=True,\n                fallback=None",
        "core/test_client.py::test_casts_that_cannot_be_sent",
    ),
    Mutant(
        "at_most_once_is_sent_again_after_a_reconnect",
        "Under at_most_once a request is never run a second time (delivery).",
        "pending.py",
        "if not self.repeatable or self._taken_at is None",
        "if self._taken_at is None",
        "core/test_pending.py::test_what_is_not_sent_again",
    ),
    Mutant(
        "a_second_server_is_heard",
        "Under at_most_once a method runs once, on one server (guarantees, when all goes well).",
        "pending.py",
        "if self.servers and not self.repeatable:",
        "if False:",
        "core/test_calls_and_servers.py::test_a_second_server_is_cancelled_under_at_most_once",
    ),
    Mutant(
        "a_second_server_is_never_cancelled",
        "Under at_most_once a method runs once, on one server (guarantees, when all goes well).",
        "client_call.py",
        "self._cancel(pending.orphans.pop())",
        "pending.orphans.pop()",
        "core/test_calls_and_servers.py::test_a_second_server_is_cancelled_under_at_most_once",
    ),
    Mutant(
        "the_loss_of_the_server_goes_unsaid",
        "The server dies while it runs an at_most_once call: ServerLost after 15 s of silence (guarantees, when "
        "something fails).",
        "pending.py",
        "if not self.repeatable and now >= self._lost_at(server):",
        "if False:",
        "core/test_pending.py::test_server_lost",
    ),
    Mutant(
        "at_most_once_casts_are_run_again",
        "An at_most_once cast that raises is logged, that is all (delivery, what the server does).",
        "failed_casts.py",
        "elif call.at_least_once:\n            self._retry",
        "elif True:\n            self._retry",
        "core/test_server.py::test_at_most_once_casts_are_never_run_again",
    ),
    # At least once
    Mutant(
        "an_answer_counts_as_confirmed_when_it_was_taken",
        "Where the message system may lose an answer, a request is accepted when its client has confirmed that "
        "(delivery, what the server does).",
        "server_call.py",
        "if error is None:\n                self._sent_at = Loop.now()\n                return",
        "pass",
        "core/test_confirmed_answers.py::test_an_answer_that_got_lost_is_sent_again",
    ),
    Mutant(
        "a_repeat_has_another_id",
        "A request keeps its id when it is repeated (delivery, duplicates).",
        "encoding.py",
        "hints.update(ttl=left, at=time.time(), again=True)",
        'hints.update(ttl=left, at=time.time(), again=True)\n    payload["_unique_id"] = new_id()',
        "core/test_calls_and_servers.py::test_an_unanswered_request_is_sent_again_when_the_connection_is_back",
    ),
    Mutant(
        "a_repeat_does_not_say_so",
        "Where the client of a call says that it has no answer, the server runs the method again (delivery, "
        "duplicates).",
        "encoding.py",
        "hints.update(ttl=left, at=time.time(), again=True)",
        "hints.update(ttl=left, at=time.time())",
        "core/test_calls_and_servers.py::test_an_unanswered_request_is_sent_again_when_the_connection_is_back",
    ),
    Mutant(
        "a_request_that_is_asked_for_again_is_dropped",
        "Where the client of a call says that it has no answer, the server runs the method again (delivery, "
        "duplicates).",
        "processing.py",
        "again = at_least_once and request.hints is not None and request.hints.again",
        "again = False",
        "core/test_server.py::test_a_request_that_is_asked_for_again_runs_again",
    ),
    Mutant(
        "a_call_whose_server_is_lost_is_not_sent_again",
        "The server hangs: a call is sent again after 15 s of silence (guarantees, when something fails).",
        "pending.py",
        "self.last_sign = self._repeat_at = now",
        "self.last_sign = now",
        "core/test_calls_and_servers.py::test_a_request_whose_server_has_fallen_silent_is_sent_again",
    ),
    Mutant(
        "what_shows_life_is_sent_again",
        "A message system that keeps nothing restarts: a call is sent again unless a server shows life (guarantees, "
        "when something fails).",
        "pending.py",
        "self._taken_at < up_since and self._heard_at < up_since and",
        "self._taken_at < up_since and",
        "core/test_pending.py::test_a_sign_of_life_after_the_reconnect_needs_no_repeat",
    ),
    Mutant(
        "the_loss_of_one_server_counts_as_that_of_all",
        "Whichever server runs an at_least_once call is heard (guarantees, when something fails).",
        "pending.py",
        "if not self.servers:\n                    self.last_sign",
        "if True:\n                    self.last_sign",
        "core/test_pending.py::test_the_loss_of_one_server_takes_nothing_from_another",
    ),
    Mutant(
        "the_loser_runs_on",
        "Two servers run an at_least_once call: the first answer counts, and the others are cancelled (guarantees, "
        "when something fails).",
        "client_call.py",
        "if len(pending.servers) > 1 or (",
        "if (",
        "core/test_calls_and_servers.py::test_the_loser_is_cancelled_under_at_least_once",
    ),
    Mutant(
        "who_waits_for_the_first_is_settled_at_once",
        "Under at_least_once the same request again waits for the outcome of the first (delivery, what the "
        "server does).",
        "processing.py",
        "if seen is Seen.DONE:",
        "if True:",
        "core/test_processing.py::test_the_same_request_while_the_first_runs",
    ),
    Mutant(
        "remembers_without_limit",
        "Each server remembers the ids of the last 10,000 requests (delivery, duplicates).",
        "server_calls.py",
        "if len(self.done) > REMEMBERED_IDS:",
        "if False:",
        "core/test_server.py::test_memory_of_requests_is_bounded",
    ),
    Mutant(
        "casts_wait_twice_as_long",
        "A cast that raises is run again after 1, 2 and 4 seconds (delivery, what the server does).",
        "failed_casts.py",
        "RETRY_DELAYS = (1.0, 2.0, 4.0, 8.0)",
        "RETRY_DELAYS = (2.0, 4.0, 8.0, 8.0)",
        "core/test_server.py::test_a_cast_is_run_again_after_one_two_and_four_seconds",
    ),
    Mutant(
        "gives_casts_up_a_try_too_early",
        "A cast is run again rpc_cast_retries times, then it is a dead letter (guarantees, when something fails).",
        "failed_casts.py",
        "if call.attempts > self._retries or",
        "if call.attempts >= self._retries or",
        "core/test_server.py::test_how_often_is_an_option",
    ),
    Mutant(
        "an_exception_of_a_call_is_tried_again",
        "An exception is an answer: a call that raised is not tried again, under either policy (guarantees, when all "
        "goes well).",
        "processing.py",
        ' raised", request.method, request.call_id)\n            self._count_failure(call, exc)\n'
        "            self._answer_error(call, exc)",
        ' raised", request.method, request.call_id)\n            self._count_failure(call, exc)\n'
        "            self.on_answered(call, exc)",
        "core/test_server.py::test_an_exception_is_an_answer",
    ),
    Mutant(
        "attempts_elsewhere_do_not_count",
        "Another server that gets a cast which raised counts on (delivery, how attempts are counted).",
        "current.py",
        "passed_on = 0 if hints is None else hints.attempts",
        "passed_on = 0",
        "core/test_attempts.py::test_the_count_goes_along_where_a_server_stops",
    ),
    Mutant(
        "the_next_server_counts_from_nothing",
        "Of a server that was killed, the next one knows of one attempt (delivery, how attempts are counted).",
        "current.py",
        "return passed_on + max(delivery.attempts or 0, int(delivery.redelivered)) + self.raised",
        "return passed_on + self.raised",
        "core/test_attempts.py::test_the_count_does_not_start_anew_where_a_server_is_lost",
    ),
    Mutant(
        "dead_letters_are_not_stored",
        "What is given up goes to the queue of dead letters (delivery, dead letters).",
        "dead_lettering.py",
        "if Capability.STORAGE not in self._transport.driver.capabilities:",
        "if True:",
        "core/test_server.py::test_a_cast_that_always_raises_is_given_up",
    ),
    Mutant(
        "dead_letters_have_no_traceback",
        "A dead letter holds the reason, the attempts, and the traceback (delivery, dead letters).",
        "failed_casts.py",
        "SerializationError):\n            self.give_up(call, reason, call.attempts, traceback)",
        "SerializationError):\n            self.give_up(call, reason, call.attempts, [])",
        "core/test_server.py::test_a_cast_that_always_raises_is_given_up",
    ),
    Mutant(
        "a_dead_letter_is_lost_with_a_hook_that_raises",
        "What is given up goes to the log, the queue and the hook (delivery, dead letters).",
        "dead_lettering.py",
        "except BaseException:  # sys.exit() too: the request has to be settled\n                LOG",
        "except KeyError:\n                LOG",
        "core/test_server.py::test_a_hook_that_raises",
    ),
    # Streams
    Mutant(
        "mixes_the_items_of_two_servers",
        "A stream is run once, on one server (guarantees, multicall).",
        "pending_stream.py",
        "if bound and bound[0].name != reply.server:",
        "if False:",
        "core/test_pending_stream.py::test_stream_is_never_mixed_from_two_servers",
    ),
    Mutant(
        "a_stream_is_started_again_elsewhere",
        "A stream that has begun is never begun again elsewhere (guarantees, multicall).",
        "pending_stream.py",
        "self.repeatable = False  # It has begun",
        "pass  # It has begun",
        "core/test_pending_stream.py::test_a_stream_that_has_begun_is_never_started_again",
    ),
    Mutant(
        "the_server_holds_a_stream_that_has_begun",
        "A stream that has begun is never begun again elsewhere (guarantees, multicall).",
        "processing.py",
        "call.accepted = call.delivery.accept()  # A stream",
        "pass  # A stream",
        "core/test_processing.py::test_a_stream_is_accepted_when_it_begins",
    ),
    Mutant(
        "a_frame_that_comes_twice_doubles_its_items",
        "Each item comes once, as it is yielded (guarantees, when all goes well).",
        "pending_stream.py",
        "items = reply.items[known:]",
        "items = reply.items",
        "core/test_pending_stream.py::test_stream_frames_that_come_twice",
    ),
    Mutant(
        "a_gap_goes_unnoticed",
        "RabbitMQ restarts: a stream goes on, unless frames were lost: then an error (guarantees, multicall).",
        "pending_stream.py",
        "if known >= 0:",
        "if True:",
        "core/test_pending_stream.py::test_stream_with_a_gap",
    ),
    Mutant(
        "a_closed_stream_runs_on",
        "The client closes the iterator: the generator is closed (guarantees, multicall).",
        "streams.py",
        'self.send_control("cancel")',
        'self.send_control("keepalive")',
        "core/test_streams.py::test_a_stream_that_is_closed_before_the_server_is_known",
    ),
    Mutant(
        "a_dead_clients_stream_runs_on",
        "The client dies: the generator is closed after 15 s (guarantees, multicall).",
        "stream_sender.py",
        "if silent >= LOST_AFTER:",
        "if silent >= 2 * LOST_AFTER:",
        "core/test_stream_sender.py::test_a_client_that_has_fallen_silent",
    ),
    Mutant(
        "the_reader_shows_no_life",
        "Only the stream of a client that died is closed (guarantees, multicall).",
        "streams.py",
        "if now - self._last_keepalive >= KEEPALIVE and",
        "if False and",
        "core/test_streams.py::test_the_reader_sends_keepalives",
    ),
    Mutant(
        "silence_counts_while_the_server_is_cut_off",
        "RabbitMQ restarts: a stream goes on where it was (guarantees, multicall).",
        "stream_sender.py",
        "self._heard = now if up_since is None else max(self._heard, up_since)",
        "pass",
        "core/test_stream_sender.py::test_silence_while_this_side_is_cut_off_is_not_the_clients",
    ),
    # Signs of life
    Mutant(
        "says_late_that_it_runs",
        "The server dies after it has run for 0.2 s: ServerLost, since it had said so (guarantees, when something "
        "fails).",
        "server_call.py",
        "if silent >= STARTED_AFTER:",
        "if silent >= KEEPALIVE:",
        "core/test_server_call.py::test_signs_of_life_for_a_msgbus_client",
    ),
    Mutant(
        "shows_no_life_when_it_is_back",
        "A call is sent again 2 s after the connection is back, unless a server shows life (guarantees, when something "
        "fails).",
        "server_call.py",
        "elif silent >= KEEPALIVE or self._has_reconnected():",
        "elif silent >= KEEPALIVE:",
        "core/test_server_call.py::test_a_server_sends_a_keepalive_when_its_connection_is_back",
    ),
    Mutant(
        "silence_counts_while_the_client_is_cut_off",
        "RabbitMQ restarts, request running: the answer is sent when it is back (guarantees, when something fails).",
        "pending.py",
        "max(self._unheard_since, now if up_since is None else up_since)",
        "0.0",
        "core/test_pending.py::test_silence_counts_only_while_one_can_hear",
    ),
    Mutant(
        "stock_clients_get_extensions",
        "Only peers of msgbus are sent what stock peers do not know (architecture, of the wire format).",
        "encoding.py",
        "if reply.extended:",
        "if True:",
        "core/test_encoding.py::test_reply_for_a_stock_client_has_its_keys_and_no_others",
    ),
    Mutant(
        "answers_in_json_whatever_was_asked",
        "The call returns what the method returns, in the codec of its client (guarantees, when all goes well).",
        "server_call.py",
        "content_type = self.delivery.message.content_type",
        'content_type = "application/json"',
        "core/test_processing.py::test_an_answer_comes_in_the_codec_of_the_request",
    ),
    Mutant(
        "a_repeat_is_given_up_where_nobody_is_there",
        "A call whose server hangs is sent again until a server shows life (guarantees, when something fails).",
        "client_call.py",
        "            retry_undeliverable=pending.deadline,\n",
        "",
        "core/test_calls_and_servers.py::test_a_request_that_is_sent_again_is_tried_until_its_deadline",
    ),
    Mutant(
        "an_answered_request_is_sent_again",
        "A method is run once, on one server, when all goes well (guarantees).",
        "client_call.py",
        "until=pending.deadline,\n            pending=pending,",
        "until=pending.deadline,",
        "core/test_calls_and_servers.py::test_an_answered_request_is_not_sent_again",
    ),
    Mutant(
        "calls_are_not_kept_on_disk",
        "RabbitMQ restarts: an at_least_once call that is queued is kept (guarantees, when something fails).",
        "base_client.py",
        "ttl, self._repeatable, ttl * SEND_SHARE",
        "ttl, False, ttl * SEND_SHARE",
        "core/test_client.py::test_what_is_kept_on_disk",
    ),
    Mutant(
        "casts_are_not_kept_on_disk",
        "RabbitMQ restarts: a cast that is queued is kept (guarantees, when something fails).",
        "base_client.py",
        "ttl, not is_fanout, left)",
        "ttl, False, left)",
        "core/test_client.py::test_what_is_kept_on_disk",
    ),
    Mutant(
        "dead_letters_are_not_kept_on_disk",
        "A dead letter stays until somebody takes it out (delivery, dead letters).",
        "dead_lettering.py",
        "message.id, None, durable=True)",
        "message.id, None, durable=False)",
        "core/test_processing.py::test_what_is_kept_on_disk",
    ),
    Mutant(
        "what_a_dead_client_asked_for_is_run_for_ever",
        "The client dies: the request runs, and nobody takes the answer (guarantees, when something fails).",
        "processing.py",
        "InvalidTarget | MessageTooLarge | MessageUndeliverable)",
        "InvalidTarget | MessageTooLarge)",
        "core/test_processing.py::test_an_answer_for_a_client_that_has_died",
    ),
    Mutant(
        "the_servers_policy_does_not_count",
        "The option rpc_delivery holds where a client says nothing of it.",
        "processing.py",
        "in POLICIES else self._policy",
        "in POLICIES else 'at_most_once'",
        "core/test_processing.py::test_the_servers_policy_holds_where_the_client_says_nothing",
    ),
    Mutant(
        "what_is_passed_on_never_expires",
        "What comes too late is not run (guarantees, when all goes well).",
        "failed_casts.py",
        "left, message.durable, seconds)",
        "None, message.durable, seconds)",
        "core/test_attempts.py::test_a_cast_that_is_passed_on_keeps_its_limits",
    ),
    Mutant(
        "what_waited_for_what_never_ran_is_dropped",
        "A request that could not be accepted comes again, and is declined or given up (delivery).",
        "processing.py",
        "duplicate.reject(requeue=True)",
        "duplicate.accept()",
        "core/test_processing.py::test_what_waits_for_a_request_that_was_not_run",
    ),
    Mutant(
        "nobody_there_is_not_final_on_the_first_connection",
        "Nobody there is known at once (guarantees, when all goes well).",
        "base_transport.py",
        "if up_since is None or up_since == first:",
        "if up_since is None:",
        "core/test_calls_and_servers.py::test_nobody_there_is_final_on_the_first_connection",
    ),
    Mutant(
        "does_not_wait_for_what_is_handed_back",
        "A server that is stopped hands back what it has not begun in a way that lets others run it (delivery, what "
        "the server does).",
        "base_server.py",
        "processor.calls.add(call)",
        "pass",
        "core/test_server.py::test_wait_waits_for_what_is_given_back",
    ),
    Mutant(
        "what_is_handed_back_may_vanish",
        "A cast is kept until a server comes (guarantees, when something fails).",
        "base_server.py",
        "copy, mandatory=True",
        "copy, mandatory=False",
        "core/test_server.py::test_wait_waits_for_what_is_given_back",
    ),
    Mutant(
        "what_is_handed_back_gets_new_time",
        "What comes too late is not run (guarantees, when all goes well).",
        "base_server.py",
        "message.content_type, message.id, left, message.durable",
        "message.content_type, message.id, message.ttl, message.durable",
        "core/test_server.py::test_wait_waits_for_what_is_given_back",
    ),
    Mutant(
        "a_client_may_ask_for_any_number_of_items_ahead",
        "The client stops reading: the server's generator waits (guarantees, multicall).",
        "stream_sender.py",
        "self._window = min(call.request.window or 1, MAX_WINDOW)",
        "self._window = call.request.window or 1",
        "core/test_stream_sender.py::test_no_client_has_a_generator_run_far_ahead",
    ),
    Mutant(
        "large_items_are_not_counted",
        "The client stops reading: the server's generator waits (guarantees, multicall).",
        "stream_sender.py",
        "self._max_bytes = counted + (self._window_bytes or MAX_BYTES)",
        "self._max_bytes = 1 << 60",
        "core/test_stream_sender.py::test_no_client_has_a_generator_run_far_ahead",
    ),
    Mutant(
        "large_items_get_no_credit",
        "Each item comes once, as it is yielded, however large it is (guarantees, when all goes well).",
        "pending_stream.py",
        " or self._uncredited_bytes * 2 >= self.window_bytes",
        "",
        "core/test_streams.py::test_credit_is_sent_for_large_items",
    ),
    Mutant(
        "a_reader_that_has_just_begun_is_sent_a_full_window",
        "The client stops reading: the server's generator waits, 100 items ahead at first (guarantees, multicall).",
        "message.py",
        "return min(window, max(FIRST_WINDOW, taken))",
        "return window",
        "core/test_stream_sender.py::test_the_window_grows_with_what_the_client_takes",
    ),
    Mutant(
        "a_slow_reader_misses_the_deadline",
        "prepare(deadline=...) bounds the whole of a multicall (guarantees, when all goes well).",
        "streams.py",
        "self._has_deadline and Loop.now() >= pending.end",
        "False",
        "core/test_streams.py::test_the_deadline_ends_a_stream_whose_items_wait",
    ),
    Mutant(
        "what_gathers_while_a_frame_is_sent_is_forgotten",
        "Each item comes once, as it is yielded (guarantees, when all goes well).",
        "stream_sender.py",
        "(self._ended or (self._buffer and self._stopped is None))",
        "self._ended",
        "core/test_stream_sender.py::test_large_items_wait_for_credit",
    ),
    Mutant(
        "a_stream_to_nobody_runs_on",
        "The client dies: the generator is closed (guarantees, multicall).",
        "stream_sender.py",
        'self._stop(f"the client at {self._call.address} could not be reached: {error}")',
        "pass",
        "core/test_stream_sender.py::test_a_client_that_cannot_be_reached",
    ),
    Mutant(
        "a_repeated_stream_gets_new_time",
        "prepare(deadline=...) bounds the whole of a multicall (guarantees, when all goes well).",
        "encoding.py",
        'hints["end"] -= hints["ttl"] - left',
        "pass",
        "core/test_encoding.py::test_a_request_that_is_sent_again_has_less_time",
    ),
    Mutant(
        "trusts_a_message_system_that_is_not_durable",
        "Where the message system may lose an answer (no inbox_storage, or not durable), a request is accepted when "
        "its client has confirmed that (delivery, what the server does).",
        "base_client.py",
        "keeps = {Capability.INBOX_STORAGE, Capability.DURABLE} <=",
        "keeps = {Capability.INBOX_STORAGE} <=",
        "core/test_confirmed_answers.py::test_inboxes_that_keep_need_no_confirmation",
    ),
    Mutant(
        "a_cast_gets_no_more_time_than_its_caller_has",
        "A cast has a limit only where its caller gave a timeout (guarantees, when all goes well).",
        "client.py",
        "deadline = Loop.now() + self._seconds",
        "from msgbus.deadline import bounded\n\n        deadline = bounded(Loop.now() + self._seconds)",
        "core/test_client.py::test_casts_of_a_handler_have_their_own_time",
    ),
    Mutant(
        "items_are_no_sign_of_life",
        "A stream's server is lost after 15 s of silence, and not before (guarantees, multicall).",
        "pending.py",
        "if server.name == reply.server:",
        "if False:",
        "core/test_pending_stream.py::test_items_are_a_sign_of_life",
    ),
    Mutant(
        "sends_what_has_no_time_left",
        "Calls that a method makes in turn get no more time than it has itself (guarantees, when all goes well).",
        "transport.py",
        "if left <= 0:",
        "if False:",
        "core/test_client.py::test_calls_of_a_handler_end_with_it",
    ),
    Mutant(
        "what_cannot_be_handed_back_is_dropped",
        "A server that is stopped hands back what it has not begun (delivery, what the server does).",
        "base_server.py",
        "else:\n                    delivery.reject(requeue=True)",
        "else:\n                    delivery.accept()",
        "core/test_server.py::test_wait_waits_for_what_is_given_back",
    ),
    # Bounds and ends
    Mutant(
        "the_window_has_one_place_too_many",
        "No more than rpc_send_window requests of a process are unfinished.",
        "window.py",
        "[None] * self.size",
        "[None] * (self.size + 1)",
        "core/test_window.py::test_has_as_many_places_as_its_size",
    ),
    Mutant(
        "what_has_not_begun_is_given_back_as_begun",
        "A server that is stopped hands back what it has not begun in a way that lets others run it (delivery, "
        "what the server does).",
        "base_server.py",
        "elif request.call_id is not None and processor.policy_of(request) == AT_LEAST_ONCE:",
        "elif True:",
        "core/test_server.py::test_stop_gives_back_what_has_not_begun",
    ),
    Mutant(
        "wait_does_not_say_what_it_abandons",
        "wait() returns how many requests were abandoned.",
        "server.py",
        "return abandoned",
        "return 0",
        "core/test_server.py::test_wait_reports_what_it_abandons",
    ),
    Mutant(
        "requests_share_a_context",
        "Requests leave nothing to each other (guarantees, when all goes well).",
        "current.py",
        "context = self._context.copy()",
        "context = self._context",
        "core/test_request_context.py::test_what_a_request_sets_no_other_sees",
    ),
    Mutant(
        "async_methods_are_served",
        "What is async, and not awaited, is refused when the server is made (guarantees, a plain method returns a "
        "coroutine).",
        "dispatcher.py",
        "if self.asynchronous:\n                    break",
        "if True:\n                    break",
        "core/test_awaitables.py::test_async_methods_are_refused_when_the_server_is_made",
    ),
    # Others' text, and secrets
    Mutant(
        "a_hostile_exception_costs_the_answer",
        "An exception is an answer, whatever its own methods raise (guarantees, when all goes well).",
        "foreign.py",
        "except BaseException as exc:  # SystemExit too: the",
        "except KeyError as exc:  # the",
        "core/test_failures.py::test_unprintable_exceptions",
    ),
    Mutant(
        "foreign_text_is_logged_as_it_comes",
        "No text of a peer's forges a line of the log.",
        "foreign.py",
        "map(_shown, args)",
        "args",
        "core/test_hostile.py::test_no_reply_forges_a_line_of_the_log",
    ),
    Mutant(
        "names_may_be_of_any_length",
        "What a server remembers is bounded: names and ids have a length (delivery, duplicates).",
        "encoding.py",
        "problem = _too_long(request)\n",
        "problem = None\n",
        "core/test_hostile.py::test_a_request_with_a_long_name_is_refused",
    ),
    Mutant(
        "passwords_are_shown",
        "No secret is in a log, a text or an error.",
        "url.py",
        'return self._format(lambda _: "***", shown)',
        "return self.unmasked",
        "core/test_secrets.py::test_url_and_transport_texts",
    ),
    Mutant(
        "cancels_no_call_of_a_cancelled_task",
        "A call whose task is cancelled is cancelled on the server.",
        "client_call.py",
        "router.abandon_later(pending.id, self._cancel)",
        "pass",
        "aio/test_cancelling.py::test_a_request_that_the_server_begins_after_its_caller_has_gone_is_cancelled",
    ),
    Mutant(
        "interrupts_no_async_method",
        "An async method gets CancelledError when its client cancels the call.",
        "aio/executor.py",
        "            task.cancel()\n        else:",
        "            pass\n        else:",
        "aio/test_cancelling.py::test_a_method_may_clean_up_when_it_is_cancelled",
    ),
    Mutant(
        "answers_what_the_server_has_interrupted_under_at_least_once",
        "What a stopping server cancels under at_least_once runs on another server.",
        "processing.py",
        "if call.at_least_once and not call.accepted and (self._stopped or not call.delivery.redelivered):\n"
        "                self.calls.finish(call, done=False)",
        "if False:\n                self.calls.finish(call, done=False)",
        "aio/test_stopping.py::test_what_is_cancelled_under_at_least_once_runs_on_another_server",
    ),
    Mutant(
        "cancels_when_it_stops",
        "A server that is stopped cancels nothing before the time of wait is over.",
        "aio/executor.py",
        "await asyncio.wait(others, timeout=left)",
        "await asyncio.wait(others, timeout=0.0)\n                break",
        "aio/test_stopping.py::test_wait_lets_what_runs_finish",
    ),
    Mutant(
        "gives_a_free_place_to_whoever_comes",
        "Tasks get places in the send window in the order in which they came.",
        "aio/window.py",
        "while self._tasks and (self._closed or self.take()):\n            waiter = next(iter(self._tasks))",
        "while self._tasks and (self._closed or self.take()):\n            waiter = list(self._tasks)[-1]",
        "aio/test_window.py::test_tasks_get_places_in_the_order_in_which_they_came",
    ),
    Mutant(
        "keeps_the_place_of_a_cancelled_task",
        "A task that is cancelled in the moment in which it gets a place in the send window does not keep it.",
        "aio/window.py",
        "self._given.remove(waiter)\n                self.release()",
        "self._given.remove(waiter)",
        "aio/test_cancelling.py::test_a_place_that_a_cancelled_task_was_just_given_goes_to_the_next",
    ),
    Mutant(
        "has_a_timer_for_each_wait",
        "Waits that end within a moment share a timer.",
        "aio/waiting.py",
        "number = int(until / GRAIN) + 1",
        "number = int(until / (GRAIN / 10_000)) + 1",
        "aio/test_window.py::test_waits_end_at_their_deadline_and_not_before",
    ),
    Mutant(
        "ends_waits_too_early",
        "A wait does not end before its deadline.",
        "aio/waiting.py",
        "number = int(until / GRAIN) + 1",
        "number = int(until / GRAIN)",
        "aio/test_window.py::test_waits_end_at_their_deadline_and_not_before",
    ),
    Mutant(
        "closes_no_remote_generator_of_a_dropped_stream",
        "The remote generator is closed when an asynchronous iterator is dropped.",
        "aio/streams.py",
        "            end.dropped = True",
        "            pass",
        "aio/test_streams.py::test_leaving_a_stream_early_closes_the_remote_generator",
    ),
    Mutant(
        "lets_a_task_wait_for_a_stream_that_another_closed",
        "A task that waits for an item of a stream ends when another task closes the stream.",
        "aio/streams.py",
        "self._call.end_wait()",
        "pass",
        "aio/test_streams.py::test_a_stream_that_another_task_closes_ends",
    ),
    Mutant(
        "runs_plain_methods_on_the_event_loop",
        "Plain methods of an asynchronous server run on threads.",
        "aio/executor.py",
        "self._threads.submit(partial(self._call, waiting, partial(context.run, call_plain, func, *args)))",
        "self._call(waiting, partial(context.run, func, *args))",
        "aio/test_endpoints.py::test_async_methods_run_on_the_event_loop_and_plain_ones_on_threads",
    ),
    Mutant(
        "runs_plain_methods_without_their_context",
        "A plain method of an asynchronous server runs in the context of its request.",
        "aio/executor.py",
        "partial(self._call, waiting, partial(context.run, call_plain, func, *args))",
        "partial(self._call, waiting, partial(func, *args))",
        "aio/test_endpoints.py::test_async_methods_run_on_the_event_loop_and_plain_ones_on_threads",
    ),
    Mutant(
        "forgets_the_context_of_plain_methods",
        "All steps of a request run in one context (the context of a request).",
        "aio/executor.py",
        "_take_over(context)\n            del",
        "pass\n            del",
        "aio/test_plain_methods.py::test_all_steps_of_a_request_run_in_one_context",
    ),
    Mutant(
        "runs_plain_methods_that_nobody_waits_for",
        "What waits for a thread when the time of wait is over is not run (when a caller gives up).",
        "aio/executor.py",
        "if done.cancelled():  # Checked last",
        "if False:  # Checked last",
        "aio/test_plain_methods.py::test_what_waits_for_a_thread_when_time_is_over_is_never_run",
    ),
    Mutant(
        "runs_plain_methods_too_late",
        "Expired requests are not run, wherever they have waited (guarantees, when all goes well).",
        "method_runner.py",
        "if call.deadline is not None and call.deadline <= Loop.now():\n                raise",
        "if False:\n                raise",
        "aio/test_plain_methods.py::test_what_has_waited_for_a_thread_beyond_its_deadline_is_not_run",
    ),
    Mutant(
        "works_on_another_event_loop",
        "A transport of msgbus.aio is refused on another event loop than its own.",
        "aio/transport.py",
        "if not self.loop.runs_here():",
        "if False:",
        "aio/test_transports.py::test_a_transport_is_refused_on_another_event_loop_or_thread",
    ),
    Mutant(
        "closes_on_the_threads_of_the_program",
        "Closing a transport of msgbus.aio does not wait for threads that the program has filled.",
        "aio/transport.py",
        'closing = run_in_thread(self.driver.close, "msgbus-closing")',
        "closing = asyncio.ensure_future(asyncio.to_thread(self.driver.close))",
        "aio/test_transports.py::test_closing_does_not_wait_for_the_programs_own_threads",
    ),
    Mutant(
        "keeps_the_context_of_the_first_task",
        "A transport of msgbus.aio keeps nothing of the task that has used it first.",
        "drivers/toolkit/hosted.py",
        "Context().run(self.host.add_reader, self._poller.fileno(), self._on_readable)",
        "self.host.add_reader(self._poller.fileno(), self._on_readable)",
        "aio/test_transports.py::test_a_transport_keeps_nothing_of_the_task_that_used_it_first",
    ),
    Mutant(
        "leaves_iterables_of_casts_open",
        "cast_many closes an asynchronous generator that it leaves early.",
        "aio/casts.py",
        "async with aclosing(requests):",
        "if True:",
        "aio/test_verbs.py::test_cast_many_closes_an_asynchronous_generator_that_it_leaves_early",
    ),
    Mutant(
        "gathers_an_answer_twice",
        "A gather has one answer of each server, also if it is sent again (how to ask all servers).",
        "answers.py",
        "return self._known.setdefault(server, mark) is mark",
        "return True",
        "core/test_gather.py::test_an_answer_that_comes_twice_is_given_once",
    ),
    Mutant(
        "asks_many_as_the_option_says",
        "A gather is at_most_once, whatever the option rpc_delivery says (how to ask all servers).",
        "base_client.py",
        "self.prepare(topic=topic, fanout=fanout, delivery=AT_MOST_ONCE)",
        "self.prepare(topic=topic, fanout=fanout)",
        "core/test_gather.py::test_it_is_at_most_once_in_any_case",
    ),
    Mutant(
        "leaves_what_runs_for_a_gather",
        "What servers still run for a gather that ends early is cancelled (how to ask all servers).",
        "gathering.py",
        "for question in sent:\n                question.close()",
        "for question in sent:\n                question.forget()",
        "core/test_gather.py::test_what_still_runs_is_cancelled_at_the_end",
    ),
    Mutant(
        "keeps_the_place_of_a_gather",
        "A gather gives its place in the send window back (how to ask all servers).",
        "gathering.py",
        "finally:\n            slot.close()",
        "finally:\n            pass",
        "core/test_gather.py::test_each_server_answers_with_its_name",
    ),
    Mutant(
        "waits_for_a_server_that_is_lost",
        "A server that falls silent while it runs a gather's question is ServerLost (how to ask all servers).",
        "answers.py",
        "return min([self.deadline, *(self._lost_at(server)",
        "return min([self.deadline, *(self.deadline",
        "core/test_gather.py::test_a_server_that_dies_while_it_runs_is_named",
    ),
    Mutant(
        "hides_a_topic_that_could_not_be_asked",
        "A gather says that a topic could not be asked (how to ask all servers).",
        "gathering.py",
        "self._failed.append((question, error))",
        "pass",
        "core/test_gather.py::test_a_message_system_that_is_away_is_an_error",
    ),
    Mutant(
        "counts_failures_as_finished",
        "stats says how often each method has failed (how to deploy, watch it).",
        "counting.py",
        "CANCELLED if cancelled else FAILED",
        "CANCELLED if cancelled else FINISHED",
        "core/test_stats.py::test_each_way_in_which_a_method_ends_is_counted",
    ),
    Mutant(
        "counts_methods_without_number",
        "What a server remembers of clients has a bounded size (how to secure).",
        "counting.py",
        "if len(self) >= MOST_METHODS:",
        "if False:",
        "core/test_stats.py::test_methods_without_number_are_counted_together",
    ),
    Mutant(
        "counts_names_that_strangers_make_up",
        "A name that no method has gets no entry in stats (how to deploy, watch it).",
        "counting.py",
        "exists = self._may_have(*method)",
        "exists = True",
        "core/test_stats.py::test_names_of_no_method_get_no_entry",
    ),
    Mutant(
        "a_busy_server_says_nothing",
        "stats is answered even where all threads are busy (how to deploy, watch it).",
        "server.py",
        "transport.loop, holds_urgent)",
        "transport.loop)",
        "core/test_stats.py::test_a_server_answers_however_busy_it_is",
    ),
    Mutant(
        "a_busy_event_loop_says_nothing",
        "stats is answered even where all tasks are taken (how to deploy, watch it).",
        "aio/executor.py",
        "and holds_urgent(item):",
        "and False:",
        "core/test_stats.py::test_a_server_answers_however_busy_it_is",
    ),
    Mutant(
        "is_ready_while_it_stops",
        "A server that is being stopped is not ready (how to deploy, Kubernetes).",
        "base_listener.py",
        "if self._stopping:\n            return",
        "if False:\n            return",
        "core/test_health.py::test_a_server_is_ready_from_its_start_to_its_stop",
    ),
    Mutant(
        "is_live_while_its_event_loop_is_blocked",
        "A server whose event loop does not react is not live (how to deploy, Kubernetes).",
        "aio/executor.py",
        "return reacted.wait(timeout)",
        "return True",
        "core/test_health.py::test_a_server_whose_event_loop_is_blocked_is_not_live",
    ),
    # Interceptors
    Mutant(
        "interceptors_run_in_another_order",
        "Of interceptors the first is the outermost.",
        "interceptors.py",
        "in reversed(interceptors):",
        "in interceptors:",
        "core/test_interceptors.py::test_the_first_in_the_list_is_the_outermost",
    ),
    Mutant(
        "a_server_proceeds_twice",
        "A server begins a method once for each request, whatever its interceptors do.",
        "interceptors.py",
        "        if self._over:\n",
        "        if False:\n",
        "core/test_interceptors.py::test_an_interceptor_of_a_server_proceeds_once",
    ),
    Mutant(
        "interceptors_run_what_was_not_accepted",
        "Under at_most_once a request is accepted before its interceptors run on its thread.",
        "intercepted_methods.py",
        "        accept(call)\n",
        "",
        "core/test_interceptors.py::test_a_request_is_accepted_before_interceptors_as_its_policy_says",
    ),
    Mutant(
        "metadata_may_be_of_any_size",
        "A server refuses a request whose metadata is too large.",
        "encoding.py",
        "problem = problem or _too_much_metadata(hints.metadata)",
        "pass",
        "core/test_interceptors.py::test_a_server_refuses_a_request_with_too_much_metadata",
    ),
    Mutant(
        "a_server_that_stops_loses_what_an_interceptor_holds",
        "A cast whose method was not begun is passed on by a server that stops.",
        "aio/intercepted_methods.py",
        "exc.begun = call.accepted",
        "pass",
        "aio/test_interceptors.py::test_a_server_that_stops_interrupts_an_interceptor_and_passes_a_cast_on",
    ),
    Mutant(
        "a_cancelled_call_leaves_its_interceptor",
        "A client that cancels its call interrupts an async interceptor.",
        "aio/intercepted_methods.py",
        "await self._tasks.run_async(call, self._run_chain(call, streams))",
        "await self._run_chain(call, streams)",
        "aio/test_interceptors.py::test_a_client_that_cancels_interrupts_an_interceptor",
    ),
    Mutant(
        "comes_again_without_a_pause",
        "A notification that comes again pauses, and others are handled meanwhile.",
        "notify/requeueing.py",
        "self._transport.loop.call_later(delay, self._give_back, call)",
        "self._give_back(call)",
        "notify/test_requeueing.py::test_the_pause_grows_and_others_are_served_meanwhile",
    ),
    Mutant(
        "many_that_pause_keep_others_waiting",
        "While many notifications pause, others are handled.",
        "notify/requeueing.py",
        "self._on_paused(paused)",
        "pass",
        "notify/test_requeueing.py::test_many_that_always_come_again_do_not_keep_others_waiting",
    ),
    Mutant(
        "a_second_copy_of_a_notification_is_run",
        "A listener drops a second copy of a notification.",
        "notify/notification.py",
        'unique_id = payload.pop("_unique_id", None)',
        'unique_id = payload.pop("_unique_id", None) and ""',
        "notify/test_listener.py::test_the_same_id_is_handled_once",
    ),
    Mutant(
        "a_notification_that_raises_is_lost",
        "With allow_requeue, a notification whose endpoint raises comes again.",
        "notify/processing.py",
        "requeue = True\n        self._settle",
        "requeue = False\n        self._settle",
        "notify/test_requeueing.py::test_what_is_to_come_again_comes_again",
    ),
    Mutant(
        "an_old_timer_ends_a_new_batch",
        "The time of a batch begins with its first notification.",
        "notify/batches.py",
        "left = self._due - Loop.now() if self._open else 0.0",
        "left = 0.0",
        "notify/test_batches.py::test_the_time_begins_with_the_first_notification",
    ),
    Mutant(
        "what_is_gathered_is_lost",
        "A listener for batches that stops handles what it has gathered.",
        "notify/base_listener.py",
        "            self._gatherer.flush()",
        "            pass",
        "notify/test_batches.py::test_what_is_gathered_is_a_batch_when_the_listener_stops",
    ),
    Mutant(
        "a_notification_fails_its_caller",
        "A notification that the message system does not take is logged, and not raised.",
        "notify/base_notifier.py",
        "if known is None and isinstance(one, _FAULTS):",
        "if known is None:",
        "notify/test_notifier.py::test_what_is_not_taken_is_logged_and_not_raised",
    ),
)
