"""Lets users spend tokens by the client until its input ends, and then says what they were told: see handouts_test.go."""

import json
import os
import sys
import threading
import time

sys.path.insert(0, os.environ["CLIENTS"])
from user_management import UserManagement

users = UserManagement(os.environ["SERVICE"], retry_for=90, timeout=10)
stopping = threading.Event()
output = threading.Lock()


class ModelError(Exception):
    pass


def tell(what):
    with output:
        print(json.dumps(what), flush=True)


def spend(user, told):
    users.put_user(user, username="somebody")
    users.add_tokens(user, 1_000_000)
    call = 0
    while not stopping.is_set():
        call += 1
        name = f"call-{call}"
        turn = call % 4
        if turn == 0:
            users.consume(user, 3, metadata={"call": name})
            told["charged"][name] = 3
        else:
            try:
                with users.reserve(user, 10) as reservation:
                    time.sleep(0.02)  # the model
                    if turn == 1:
                        reservation.settle(7, metadata={"call": name})
                    elif turn == 2:
                        reservation.tokens_used = 12
                    else:
                        raise ModelError
                told["charged"][reservation.id] = 7 if turn == 1 else 12
            except ModelError:
                told["failed"].append(reservation.id)
        tell({"done": 1})


def work(user, told):
    try:
        spend(user, told)
    except Exception as error:
        told["error"] = f"{type(error).__name__}: {error}"


told = {user: {"charged": {}, "failed": []} for user in json.loads(os.environ["USERS"])}
threads = [threading.Thread(target=work, args=item) for item in told.items()]
for thread in threads:
    thread.start()
sys.stdin.read()
stopping.set()
for thread in threads:
    thread.join()
tell({"told": told})
