"""The laws of message stores, each as a function that tries to break it.

They are used as those in :mod:`persistcoll.testing.laws.queue_store`, for a
:class:`~persistcoll.engine.contracts.MessageStore` of your own. A
:class:`~persistcoll.testing.laws.message_store_harness.MessageStoreFactory` opens the stores and moves their
time.
"""

from __future__ import annotations

from persistcoll.testing.laws.message_store_claims import CLAIM_LAWS
from persistcoll.testing.laws.message_store_contents import CONTENT_LAWS
from persistcoll.testing.laws.message_store_events import EVENT_LAWS
from persistcoll.testing.laws.message_store_groups import GROUP_LAWS
from persistcoll.testing.laws.message_store_harness import MessageStoreFactory, MessageStoreLaw
from persistcoll.testing.laws.message_store_keys import KEY_LAWS
from persistcoll.testing.laws.message_store_life import LIFE_LAWS
from persistcoll.testing.laws.message_store_places import PLACE_LAWS
from persistcoll.testing.laws.message_store_removal import REMOVAL_LAWS
from persistcoll.testing.laws.message_store_times import TIME_LAWS
from persistcoll.testing.laws.message_store_topics import TOPIC_LAWS
from persistcoll.testing.laws.message_store_transactions import TRANSACTION_LAWS

__all__ = ["MESSAGE_STORE_LAWS", "MessageStoreFactory"]

MESSAGE_STORE_LAWS: dict[str, MessageStoreLaw] = {
    each.number: each
    for each in (
        *LIFE_LAWS,
        *TRANSACTION_LAWS,
        *PLACE_LAWS,
        *GROUP_LAWS,
        *TIME_LAWS,
        *KEY_LAWS,
        *CLAIM_LAWS,
        *REMOVAL_LAWS,
        *TOPIC_LAWS,
        *CONTENT_LAWS,
        *EVENT_LAWS,
    )
}
"""Every law of message stores, by its number."""
