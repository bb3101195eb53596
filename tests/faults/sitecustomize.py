"""Python reads this at the start of every program with this folder on its path: faults without hooks in the product.

The daemon looks after its engines more often, starts them again sooner, looks sooner for what a
start waits for, stays away from its broker no longer than a second and is said to be gone after one, so that tests are
short; `submit` looks no longer for a broker than that.
FAULTS_SILENCE_S is how long the daemon waits for a silent engine; FAULTS_ASIDE_S how long it leaves a device alone that
failed once; FAULTS_BACKEND (`module:function`) replaces the backend in engine children.
FAULTS_CLAIM_S is how long the queue takes to say what there is to do.
FAULTS_CRASH lets the main thread fail in its first turn, or before anything is made when it is `begin`.
FAULTS_FREEZE is a folder: a thread whose name is a file in it stands still for ever when it next begins a turn; no
turn may take longer than three seconds then.
"""

import os
import sys
import time
from dataclasses import replace

if "edge_agent" in sys.orig_argv or any(each.endswith("/edge-agent") for each in sys.orig_argv[1:2]):
    from edge_agent.agent import lifecycle, waiting
    from edge_agent.engine.hosting import engines, plan, state, supervisor
    from edge_agent.models import fallback
    from edge_agent.mqtt import link, redial

    lifecycle.TICK_S = 0.1
    waiting.RETRY_S = 0.1
    redial.RETRY_MAX_S = 1.0
    link.WILL_DELAY_S = 1
    state.BACKOFF_MOST_S = 0.5
    plan.IDLE_S = 0.5
    engines.Engines.__init__.__kwdefaults__["backoff_first_s"] = 0.1
    if silence_s := os.environ.get("FAULTS_SILENCE_S"):
        engines.Engines.__init__.__kwdefaults__["silence_s"] = float(silence_s)
    if aside_s := os.environ.get("FAULTS_ASIDE_S"):
        fallback.Fallbacks.__init__.__kwdefaults__["first_s"] = float(aside_s)
    if claim_s := os.environ.get("FAULTS_CLAIM_S"):
        from edge_agent.jobs import queue

        claim = queue.Queue.claim
        queue.Queue.claim = lambda *given, **named: time.sleep(float(claim_s)) or claim(*given, **named)
    if os.environ.get("FAULTS_CRASH") == "begin":
        lifecycle.build.ground = lambda *_given, **_named: 1 / 0
    elif os.environ.get("FAULTS_CRASH"):
        supervisor.Supervisor.attend = lambda _supervisor: 1 / 0
    if folder := os.environ.get("FAULTS_FREEZE"):
        import freezing

        freezing.watch(folder)

if "submit" in sys.orig_argv:
    from edge_agent.cli import submit

    submit.CONNECT_S = 1.0

if "edge_agent.engine.child" in sys.orig_argv and (entry := os.environ.get("FAULTS_BACKEND")):
    from edge_agent.engine.registry import backends

    backends()["onnx"] = replace(backends()["onnx"], load=entry)
