"""The scheduling policy: what the engine does next, a pure function of the work there is. Imports no torch.

Weighted fair queueing between tenants, shortest remaining work first inside one. The tenant owed most leads, with its
most urgent item (`work_items.urgency`: class, deadline, remaining work, arrival). Offline work runs only when there is
no other. A leading step is batched with rows of the same key, again the tenant owed most first, up to the profile's
largest batch; batch slots that no encoded row takes go to rows that wait for their encoding, which is then done first.
Everyone is charged the seconds it adds to the call.

The accounting is deficit round robin with the deficits stored as differences: a tenant's account grows by the seconds
it used over its weight, the lowest has the next turn and stands at 0. Credit and debt are thus relative to the tenants
present: an absent one saves up no credit, and a debt shrinks as the others are served (start-time fair queueing, Goyal,
Vin and Cheng 1996).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from serving.engine.work_items import Decision, Kind, Limits, Urgency, WorkItem, urgency

Accounts = Mapping[str, float]
"""Tenant to seconds, over its weight, that it is ahead of the tenant owed most."""


@dataclass(frozen=True, slots=True)
class FairnessLedger:
    """The state between decisions. Offline work has accounts of its own, since it only uses what nobody else wants.

    An engine that decodes beside its steps keeps one ledger for each: who has nothing for one of the two must neither
    save up credit there nor have its debt forgiven.

    Args:
        online, offline: accounts by tenant; one that is missing is owed as much as the one owed most.
    """

    online: Accounts = field(default_factory=lambda: MappingProxyType({}))
    offline: Accounts = field(default_factory=lambda: MappingProxyType({}))

    def band(self, offline: bool) -> Accounts:
        """The accounts of offline work, or of all other."""
        return self.offline if offline else self.online

    def with_band(self, offline: bool, accounts: Accounts) -> FairnessLedger:
        """The ledger with one of the two replaced."""
        return FairnessLedger(self.online, accounts) if offline else FairnessLedger(accounts, self.offline)


def standings(accounts: Accounts, present: Collection[str]) -> dict[str, float]:
    """The accounts of everyone who has work now, the lowest at 0, and the debts of those who have none.

    A newcomer starts level with the tenant owed most, so a flood that was there before does not delay it. Who comes
    back finds its debt as far as the others were not served since.
    """
    level = min((accounts[tenant] for tenant in present if tenant in accounts), default=0.0)
    known = {tenant: ahead - level for tenant, ahead in accounts.items() if tenant in present or ahead > level}
    return dict.fromkeys(present, 0.0) | known


def charged(accounts: Accounts, used: Mapping[str, float], weights: Mapping[str, float]) -> dict[str, float]:
    """The accounts after a call.

    Args:
        accounts: by `standings`.
        used: seconds of the call by tenant.
        weights: of every tenant that has work.
    """
    after = {tenant: ahead + used.get(tenant, 0.0) / weights.get(tenant, 1.0) for tenant, ahead in accounts.items()}
    return standings(after, weights)


Ranked = tuple[Urgency, WorkItem]
Queues = Mapping[str, list[Ranked]]
"""By tenant, the most urgent first; none is empty."""


def decide(items: Sequence[WorkItem], limits: Limits, ledger: FairnessLedger) -> tuple[Decision | None, FairnessLedger]:
    """The next thing to do, and the ledger after it.

    Args:
        items: the next piece of every job that is not finished, resident or not, in any order.
        limits: the clock, and how much fits.
        ledger: what the last decision returned; `Ledger()` at first.

    Returns:
        None, and the ledger as it was, if there are no items.
    """
    offline = all(item.offline for item in items)
    queues = _queues([item for item in items if item.offline == offline], limits)
    if not queues:
        return None, ledger
    weights = {tenant: max(item.weight for _, item in queue) for tenant, queue in queues.items()}
    accounts = standings(ledger.band(offline), queues)
    planned = _plan(queues, weights, accounts, limits)
    call = planned.encoding_first()
    after = charged(accounts, call.used, weights)
    park = _park(items, planned.items, call.items, accounts, limits)
    decision = Decision(call.items[0].kind, tuple(item.job_id for item in call.items), park, sum(call.used.values()))
    return decision, ledger.with_band(offline, after)


def order(items: Sequence[WorkItem], limits: Limits, ledger: FairnessLedger) -> tuple[str, ...]:
    """The job ids in the order in which they would finish if each ran alone from now on: what a queue position means.

    Args:
        items: as for `decide`.
        limits: as for `decide`.
        ledger: as for `decide`.
    """
    placed: list[str] = []
    for offline in (False, True):
        queues = _queues([item for item in items if item.offline == offline], limits)
        ahead = standings(ledger.band(offline), queues)
        while queues:
            item = _take_leader(queues, ahead)
            ahead[item.tenant] += item.work_left_s / item.weight
            placed.append(item.job_id)
    return tuple(placed)


class _Call:
    """A call that is being put together.

    Args:
        leader: who pays for the call being made at all; the others pay what they add to it.
    """

    def __init__(self, leader: WorkItem, limits: Limits) -> None:
        self.items = [leader]
        self.used = {leader.tenant: leader.cost_s}
        self._limits = limits
        self._batching = limits.of(leader)
        self._room = self._batching.largest - leader.batch_slots
        self.full_s = leader.cost_s * (1 + self._batching.marginal * max(self._room, 0) / leader.batch_slots)

    @property
    def full(self) -> bool:
        """Whether nobody fits any more."""
        return self._room < 1 or len(self.items) >= self._limits.max_resident

    def fits(self, item: WorkItem) -> bool:
        """Whether the call has batch slots for it."""
        return item.batch_slots <= self._room and not self.full

    def price(self, item: WorkItem) -> float:
        """Seconds it adds; of a row that lacks its encoding, that and a step."""
        if item.ready:
            return item.cost_s * self._batching.marginal
        leader = self.items[0]
        return item.cost_s + leader.cost_s * item.batch_slots / leader.batch_slots * self._batching.marginal

    def add(self, item: WorkItem) -> None:
        """Take it along."""
        self.used[item.tenant] = self.used.get(item.tenant, 0.0) + self.price(item)
        self.items.append(item)
        self._room -= item.batch_slots

    def encoding_first(self) -> _Call:
        """This call, or the encoding of the first of its rows that lacks it."""
        return next((_Call(item, self._limits) for item in self.items if item.kind == "encode"), self)


def _plan(queues: Queues, weights: Mapping[str, float], accounts: Accounts, limits: Limits) -> _Call:
    """The leader, and whoever shares its call."""
    leader = queues[_owed_most(queues, accounts)][0][1]
    call = _Call(leader, limits)
    if leader.ready:
        for kind in ("step", "encode"):
            _fill(call, kind, queues, weights, accounts)
    return call


def _fill(call: _Call, kind: Kind, queues: Queues, weights: Mapping[str, float], accounts: Accounts) -> None:
    """Add riders of one kind while there is room, the tenant owed most first.

    Every rider makes the call longer for the leader and for who waits, so none may take its tenant further ahead than
    one full call; for nothing else a batch slot is left empty.
    """
    riders = {} if call.full else _riders(queues, call.items[0], kind)
    ahead = {tenant: accounts[tenant] + call.used.get(tenant, 0.0) / weights[tenant] for tenant in riders}
    while riders and not call.full:
        item = _take_leader(riders, ahead)
        tenant, price = item.tenant, call.price(item)
        fair = ahead[tenant] * weights[tenant] + price <= call.full_s
        if call.fits(item) and (fair or tenant == call.items[0].tenant):
            call.add(item)
            ahead[tenant] += price / weights[tenant]


def _park(
    items: Sequence[WorkItem], planned: list[WorkItem], next_up: list[WorkItem], accounts: Accounts, limits: Limits
) -> tuple[str, ...]:
    """Residents that make room for what is next: offline ones first, then by how far the tenant is ahead."""
    planned_ids = {item.job_id for item in planned}
    residents = [item for item in items if item.resident]
    surplus = len(residents) + sum(not item.resident for item in next_up) - limits.max_resident
    if surplus <= 0:
        return ()
    idle = [item for item in residents if item.job_id not in planned_ids]
    idle.sort(key=lambda item: (item.offline, accounts.get(item.tenant, 0.0), urgency(item, limits)), reverse=True)
    return tuple(item.job_id for item in idle[:surplus])


def _queues(items: Sequence[WorkItem], limits: Limits) -> dict[str, list[Ranked]]:
    queues: dict[str, list[Ranked]] = {}
    for ranked in sorted([(urgency(item, limits), item) for item in items], key=_rank):
        queues.setdefault(ranked[1].tenant, []).append(ranked)
    return queues


def _rank(ranked: Ranked) -> Urgency:
    return ranked[0]


def _owed_most(queues: Queues, ahead: Accounts) -> str:
    """Whose turn it is; between equals, who has the more urgent item."""
    return min(queues, key=lambda tenant: (ahead[tenant], queues[tenant][0][0]))


def _take_leader(queues: dict[str, list[Ranked]], ahead: Accounts) -> WorkItem:
    """The most urgent item of the tenant owed most, taken out of its queue."""
    tenant = _owed_most(queues, ahead)
    _, item = queues[tenant].pop(0)
    if not queues[tenant]:
        del queues[tenant]
    return item


def _riders(queues: Queues, leader: WorkItem, kind: Kind) -> dict[str, list[Ranked]]:
    """Who else could be in the leader's call."""
    riders: dict[str, list[Ranked]] = {}
    for tenant, queue in queues.items():
        for ranked in queue:
            _, item = ranked
            if item.kind == kind and item.key == leader.key and item is not leader:
                riders.setdefault(tenant, []).append(ranked)
    return riders
