"""Conversations of a caller and a callee, told line by line (see protocol_script)."""

from __future__ import annotations

from mesh.protocol.caller import ABANDONED
from mesh.protocol.messages import VERSION

# --- greeting -------------------------------------------------------------------------------------


def test_a_link_opens_with_hello_and_welcome(fresh):
    """Each end learns who the other is, and the caller how much it may have under way."""
    fresh.play(
        """
        caller | connected
        caller | wrote hello 1 ann-1 100 1048576
        callee | connected
        callee | is greeting
        callee | hears hello 1 ann-1 100
        callee | is open
        callee | wrote welcome 1 bob-1 200 4 1048576
        caller | is greeting
        caller | hears welcome 1 bob-1 200
        caller | is open
        """
    )
    assert (fresh.callee.peer, fresh.callee.peer_epoch) == ("ann-1", 100)
    assert (fresh.caller.peer, fresh.caller.peer_epoch) == ("bob-1", 200)
    assert (fresh.caller.credit, fresh.caller.max_body) == (4, 1048576)


def test_a_caller_of_another_version_is_rejected_by_name(fresh):
    """The reject says which versions met; the link never opens, and the caller learns the reason."""
    fresh.play(
        f"""
        callee | connected
        caller | raw [1, {VERSION + 1}, "old", 5, 10]
        callee | breaks peer 'old' speaks wire version {VERSION + 1}, this end speaks {VERSION}
        callee | is greeting
        caller | connected
        caller | breaks peer rejected the link: protocol_violation: hello: peer 'old' speaks
        caller | is closed
        """
    )
    assert fresh.callee.peer == ""


def test_a_callee_of_another_version_never_opens_the_link(fresh):
    """A caller does not take a welcome that it cannot understand."""
    fresh.play(
        f"""
        caller | connected
        callee | raw [2, {VERSION + 1}, "new", 5, 10, 10]
        caller | breaks peer 'new' speaks wire version {VERSION + 1}
        caller | is greeting
        """
    )
    assert fresh.caller.credit == 0


def test_nothing_is_legal_before_the_greeting(fresh):
    """A call, a cancel or a ping before the hello is a violation."""
    fresh.play(
        """
        callee | connected
        caller | raw [16, 1, "a.b", 1000, b""]
        callee | breaks call: not legal while the link is greeting
        caller | raw [18, 1]
        callee | breaks cancel: not legal while the link is greeting
        caller | raw [4, 1]
        callee | breaks ping: not legal while the link is greeting
        caller | connected
        caller | breaks peer rejected the link
        """
    )


def test_a_second_hello_is_a_violation(script):
    """An identity does not change during a connection."""
    script.play(
        """
        caller | raw [1, 1, "mallory", 5, 10]
        callee | breaks hello: not legal while the link is open
        caller | breaks peer rejected the link: protocol_violation: hello
        """
    )
    assert script.callee.peer == "ann-1"


def test_an_answer_before_the_welcome_is_a_violation(fresh):
    """A callee that answers what nobody asked is cut."""
    fresh.play(
        """
        caller | connected
        callee | raw [20, 1, b""]
        caller | breaks reply: not legal for call 1, which is unknown
        """
    )


# --- calls ----------------------------------------------------------------------------------------


def test_a_call_is_answered_once(script):
    """Call, reply; afterwards neither end remembers it."""
    script.play(
        """
        caller | call greeting.hello ujun
        callee | hears call 1 greeting.hello 1000 ujun
        callee | owes 1
        callee | reply 1 hello
        callee | owes nothing
        caller | owes 1
        caller | hears reply 1 hello
        caller | owes nothing
        """
    )


def test_calls_are_answered_in_any_order(script):
    """Calls of one tick share a frame; their answers come as they are ready."""
    script.play(
        """
        caller | call a.x
        caller | call a.y
        caller | call a.z
        caller | wrote call 1 a.x 1000 -, call 2 a.y 1000 -, call 3 a.z 1000 -
        callee | hears call 1, call 2, call 3
        callee | reply 3 c
        callee | error 1 handler_error
        callee | refuse 2 unknown_method
        caller | hears reply 3 c, error 1 handler_error, refused 2 unknown_method
        caller | owes nothing
        """
    )


def test_a_second_answer_is_not_written(script):
    """What is owed nothing is told nothing: an answer after the last word is dropped at its source."""
    script.play(
        """
        caller | call a.x
        callee | hears call 1
        callee | reply 1 first
        callee | reply 1 second
        callee | error 1 handler_error
        callee | refuse 1 overloaded
        callee | end 1
        caller | hears reply 1 first
        """
    )


def test_a_second_answer_from_a_broken_callee_is_a_violation(script):
    """The caller takes one last word and no more."""
    script.play(
        """
        caller | call a.x
        callee | hears call 1
        callee | raw [20, 1, b"first"]
        caller | hears reply 1 first
        callee | raw [20, 1, b"second"]
        caller | breaks reply: not legal for call 1, which is unknown
        """
    )


def test_a_call_cannot_be_answered_as_a_stream(script):
    """Items for a call are a violation."""
    script.play(
        """
        caller | call a.x
        callee | hears call 1
        callee | raw [23, 1, b"item"]
        caller | breaks item: not legal for call 1, which is waiting
        """
    )


def test_a_call_cannot_be_given_credit(script):
    """Credit is for streams."""
    script.play(
        """
        caller | call a.x
        caller | raw [19, 1, 5]
        callee | breaks credit: call 1 is not a stream
        """
    )


def test_an_id_in_use_cannot_be_used_again(script):
    """Two calls with one id would be answered once."""
    script.play(
        """
        caller | call a.x
        callee | hears call 1
        caller | raw [16, 1, "a.y", 1000, b""]
        callee | breaks call: id 1 is in use
        """
    )


def test_a_call_beyond_the_credit_is_refused_at_once(script):
    """The fifth of four is told `overloaded` and never reaches the server; a place that is free again is used."""
    script.play(
        """
        caller | call a.x
        caller | call a.x
        caller | open a.s 8
        caller | call a.x
        caller | call a.x
        callee | hears call 1, call 2, open 3, call 4
        callee | owes 1, 2, 3, 4
        caller | hears refused 5 overloaded
        callee | reply 2
        caller | hears reply 2
        caller | call a.x
        callee | hears call 6
        """
    )


# --- cancelling -----------------------------------------------------------------------------------


def test_a_cancel_reaches_the_handler_and_its_last_word_frees_the_id(script):
    """Until the callee's last word the id is taken; that word is for nobody."""
    script.play(
        """
        caller | call a.slow
        callee | hears call 1
        caller | cancel 1
        callee | hears cancel 1
        caller | owes 1
        callee | error 1 cancelled
        caller | hears nothing
        caller | owes nothing
        callee | owes nothing
        """
    )


def test_a_reply_that_crosses_a_cancel_is_ignored(script):
    """A late answer to a cancelled call changes nothing, nor does the cancel of an answered one."""
    script.play(
        """
        caller | call a.x
        callee | hears call 1
        callee | reply 1 late
        caller | cancel 1
        callee | hears nothing
        caller | hears nothing
        caller | owes nothing
        callee | owes nothing
        """
    )


def test_a_cancel_is_said_once(script):
    """Cancelling twice, or after the answer, writes nothing more."""
    script.play(
        """
        caller | call a.x
        callee | hears call 1
        caller | cancel 1
        caller | cancel 1
        caller | wrote cancel 1
        callee | hears cancel 1
        callee | reply 1
        caller | hears nothing
        caller | cancel 1
        caller | cancel 99
        caller | wrote nothing
        """
    )


def test_a_cancel_of_an_unknown_call_is_passed_over(script):
    """It may have crossed the last word, so it is never a violation; nor is a second one, nor credit."""
    script.play(
        """
        caller | raw [18, 77]
        caller | raw [19, 77, 5]
        callee | hears nothing
        caller | call a.x
        callee | hears call 1
        caller | raw [18, 1]
        caller | raw [18, 1]
        callee | hears cancel 1
        """
    )


def test_a_refusal_may_answer_a_cancelled_call(script):
    """A call that is cancelled while it waits in the callee's queue was never started, and that is what is said."""
    script.play(
        """
        caller | call a.x
        caller | cancel 1
        callee | hears call 1, cancel 1
        callee | refuse 1 cancelled
        caller | hears nothing
        caller | owes nothing
        """
    )


# --- streams --------------------------------------------------------------------------------------


def test_a_stream_is_items_and_an_end(script):
    """Items come in the order in which they were sent, then the end."""
    script.play(
        """
        caller | open a.count 2
        callee | hears open 1 a.count 1000 - 2
        callee | item 1 one
        callee | item 1 two
        caller | hears item 1 one, item 1 two
        caller | grant 1 2
        callee | hears credit 1 2
        callee | item 1 three
        callee | end 1
        caller | hears item 1 three, end 1
        caller | owes nothing
        callee | owes nothing
        """
    )


def test_a_stream_may_end_with_an_error_after_items(script):
    """What came before the error was real."""
    script.play(
        """
        caller | open a.count 8
        callee | hears open 1
        callee | item 1 one
        callee | error 1 handler_error
        caller | hears item 1 one, error 1 handler_error
        caller | owes nothing
        """
    )


def test_a_stream_may_be_refused(script):
    """Before its first item, nothing has run."""
    script.play(
        """
        caller | open a.count 8
        callee | hears open 1
        callee | refuse 1 overloaded
        caller | hears refused 1 overloaded
        caller | owes nothing
        """
    )


def test_items_that_cross_a_cancel_are_swallowed(script):
    """Nobody reads them; after the cancel was heard none is written, and the end frees the id."""
    script.play(
        """
        caller | open a.count 8
        callee | hears open 1
        callee | item 1 one
        caller | cancel 1
        callee | item 1 two
        caller | hears nothing
        callee | hears cancel 1
        callee | item 1 three
        callee | wrote nothing
        caller | owes 1
        callee | error 1 cancelled
        caller | hears nothing
        caller | owes nothing
        """
    )


def test_credit_that_crosses_the_end_is_passed_over(script):
    """A grant for a stream that has ended is late, not wrong; the caller that knows does not send it."""
    script.play(
        """
        caller | open a.count 1
        callee | hears open 1
        callee | item 1 one
        callee | end 1
        caller | grant 1 1
        callee | hears nothing
        caller | hears item 1 one, end 1
        caller | grant 1 1
        caller | wrote nothing
        """
    )


def test_credit_for_a_cancelled_stream_changes_nothing(script):
    """The caller sends none, and the callee stays on its way to its last word."""
    script.play(
        """
        caller | open a.count 1
        callee | hears open 1
        caller | grant 1 3
        caller | cancel 1
        caller | grant 1 3
        callee | hears credit 1 3, cancel 1
        caller | raw [19, 1, 3]
        callee | hears credit 1 3
        callee | end 1
        caller | hears nothing
        """
    )


def test_a_stream_cannot_be_answered_as_a_call(script):
    """A reply to an open is a violation."""
    script.play(
        """
        caller | open a.count 1
        callee | hears open 1
        callee | raw [20, 1, b""]
        caller | breaks reply: not legal for call 1, which is streaming
        """
    )


# --- leaving --------------------------------------------------------------------------------------


def test_goodbye_is_acknowledged_and_nothing_is_lost(script):
    """What runs is answered; the pong says that the caller has read the goodbye, and so that no call is on its way."""
    script.play(
        """
        caller | call a.slow
        callee | hears call 1
        callee | goodbye deploy
        callee | is leaving
        callee | parted no
        caller | call a.late
        callee | hears nothing
        caller | hears goodbye deploy, ping 0, refused 2 draining
        caller | is leaving
        callee | parted no
        caller | wrote pong 0
        callee | hears nothing
        callee | parted yes
        callee | owes 1
        callee | reply 1 done
        caller | hears reply 1 done
        caller | owes nothing
        """
    )


def test_goodbye_is_said_once_and_not_before_the_hello(fresh):
    """A link that has not opened has nobody to leave; a second goodbye adds nothing."""
    fresh.play(
        """
        callee | connected
        callee | goodbye early
        callee | wrote nothing
        callee | is greeting
        caller | connected
        callee | hears hello
        caller | hears welcome
        callee | goodbye deploy
        callee | goodbye again
        callee | wrote goodbye deploy, ping 0
        """
    )


def test_a_cancel_is_heard_while_draining(script):
    """Leaving does not make a handler deaf, and streams go on by credit."""
    script.play(
        """
        caller | call a.slow
        caller | open a.count 1
        callee | hears call 1, open 2
        callee | goodbye deploy
        caller | hears goodbye, ping
        caller | cancel 1
        caller | grant 2 1
        callee | hears cancel 1, credit 2 1
        callee | item 2 one
        callee | error 1 cancelled
        callee | end 2
        caller | hears item 2 one, end 2
        callee | owes nothing
        """
    )


def test_pings_are_answered_in_every_state(script):
    """A ping asks the loop, and a leaving end still has one; a pong before the goodbye parts nobody."""
    script.play(
        """
        caller | ping 7
        callee | hears nothing
        callee | wrote pong 7
        caller | hears pong 7
        callee | goodbye deploy
        caller | ping 8
        callee | hears nothing
        callee | parted no
        caller | hears goodbye, ping, pong 8
        callee | hears nothing
        callee | parted yes
        """
    )


def test_a_caller_says_no_goodbye(script):
    """It simply goes; a goodbye from it is a violation."""
    script.play(
        """
        caller | raw [3, "bye"]
        callee | breaks goodbye: not legal while the link is open
        """
    )


# --- the end --------------------------------------------------------------------------------------


def test_calls_on_a_lost_link_are_reported_oldest_first(script):
    """Each that still waited for an answer, and none that was cancelled or answered."""
    script.play(
        """
        caller | call a.x
        caller | open a.s 1
        caller | call a.y
        caller | call a.z
        callee | hears call 1, open 2, call 3, call 4
        callee | reply 3
        caller | hears reply 3
        caller | cancel 4
        caller | loses 1, 2
        caller | is closed
        caller | owes nothing
        caller | loses nothing
        """
    )


def test_a_lost_link_tells_the_callee_whom_to_stop(script):
    """Handlers that still run for it; what they answer afterwards goes nowhere."""
    script.play(
        """
        caller | call a.x
        caller | call a.y
        callee | hears call 1, call 2
        callee | reply 1
        caller | hears reply 1
        callee | loses 2
        callee | is closed
        callee | reply 2
        callee | error 2 handler_error
        callee | item 2
        callee | end 2
        callee | goodbye late
        callee | wrote nothing
        callee | loses nothing
        """
    )


def test_a_reject_ends_an_open_link(script):
    """Whatever the reason, the caller learns it and the link is closed."""
    script.play(
        """
        callee | raw [6, "overloaded", "too many links"]
        caller | breaks peer rejected the link: overloaded: too many links
        caller | is closed
        """
    )


def test_a_violation_is_told_to_the_caller(script):
    """The callee's last message on a link that it cuts is the reason."""
    script.play(
        """
        caller | raw [99, 1]
        callee | breaks unknown kind of message: 99
        callee | wrote reject protocol_violation unknown kind of message: 99
        """
    )


def test_an_abandoned_call_still_counts_towards_the_credit(script):
    """The callee counts it until its last word, so the caller must, too."""
    script.play(
        """
        caller | call a.x
        callee | hears call 1
        caller | cancel 1
        """
    )
    assert script.caller.calls == {1: ABANDONED}
    assert script.caller.credit - len(script.caller.calls) == 3
