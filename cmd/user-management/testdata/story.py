"""Makes every call of the client once, and looks at what comes back: see handouts_test.go."""

import os
import sys
import time

sys.path.insert(0, os.environ["CLIENTS"])
from user_management import InsufficientTokensError, UserExistsError, UserManagement, UserNotFoundError

users = UserManagement(os.environ["SERVICE"])
user = "ä b/c%d?e#f"

assert users.info()["status"] == "running"
assert users.health()["status"] == "healthy"
assert users.livez()["status"] == "alive"
assert users.whoami()["open"]
assert users.tiers()["tiers"]["tester"]["tokens_per_month"] == 1000

assert users.create_user(user, email="ann@example.com")["cognito_user_id"] == user
try:
    users.create_user(user)
    raise AssertionError("it was made twice")
except UserExistsError as error:
    assert error.status == 409 and error.outcome == "none"
assert users.put_user(user, username="Ann", metadata={"why": "sign-up"})["email"] == "ann@example.com"
assert users.update_user(user, email=None, subscription_status="trialing")["email"] is None
assert users.get_user("seen first")["subscription_tier"] == "free"
assert users.status("also new", create=True)["reason"] == "insufficient_tokens"
changed = users.change_tier(user, "tester", renewal_date="2027-01-01", metadata={"why": "paid"})
assert changed["subscription_renewal_date"] == "2027-01-01T00:00:00.000000Z"

assert users.add_tokens(user, 10)["tokens_remaining"] == 1010
first = users.consume(user, 10, idempotency_key="call 1", metadata={"model": "large"})
again = users.consume(user, 10, idempotency_key="call 1")
assert (first["tokens_remaining"], again["entry_id"], first.replayed, again.replayed) == (1000, first["entry_id"], False, True)
assert users.refund(user, first["entry_id"], 4)["tokens_remaining"] == 1004
assert users.refund(user, first["entry_id"])["tokens_remaining"] == 1010
try:
    users.consume(user, 2000)
    raise AssertionError("it was charged")
except InsufficientTokensError as error:
    assert (error.tokens_remaining, error.tokens_required) == (1010, 2000), error.document

reservation = users.reserve(user, 100, ttl_seconds=60, metadata={"model": "large"})
assert reservation.extend(120)["status"] == "open"
assert [open["reservation_id"] for open in users.reservations(user)] == [reservation.id]
assert reservation.settle(80)["tokens_returned"] == 20
assert users.get_reservation(user, reservation.id)["status"] == "settled"
assert users.reserve(user, 30).release()["tokens_remaining"] == 930
with users.reserve(user, 5, ttl_seconds=1) as late:
    while users.get_reservation(user, late.id)["status"] == "open":
        time.sleep(0.1)
    late.tokens_used = 7
assert late.answer["late"] and late.answer["tokens_charged"] == 7, late.answer

kinds = [entry["kind"] for entry in users.ledger(user, page_size=2)]
assert kinds.count("reserve") == 3 and kinds.count("refund") == 2 and len(kinds) > 8, kinds
assert [entry["kind"] for entry in users.ledger(user, kind="consume", since="2026-01-01T00:00:00Z")] == ["consume"]
assert users.usage(user)["total_charged"] == 97
assert users.platform_usage(by="tier")["total_charged"] == 97
assert {account["cognito_user_id"] for account in users.users(q="", page_size=1)} == {user, "seen first", "also new"}
assert [account["username"] for account in users.users(tier="tester", is_active=True)] == ["Ann"]
seen, cursor = 0, None
for page in users.feed(page_size=3):
    seen, cursor = seen + len(page["entries"]), page["next_cursor"]
assert seen == len(kinds), (seen, kinds)
assert list(users.feed(after=cursor)) == []

users.deactivate_user("also new")
assert not users.get_user("also new")["is_active"]
assert users.erase_user("also new")
try:
    users.erase_user("also new")
    raise AssertionError("it was there")
except UserNotFoundError:
    pass
