"""Weighted fair shares between tenants: how far each is ahead of the one that is owed most.

This is deficit round robin with the deficits kept as differences: a tenant's account grows by the seconds it used over
its weight, whoever is lowest has the next turn, and the lowest stands at 0. So credit and debt are always relative to
who is there, nobody saves up credit while away, and a debt shrinks as the others are served (start-time fair queueing,
Goyal, Vin and Cheng 1996). All functions are pure.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

Accounts = Mapping[str, float]
"""Tenant to seconds, over its weight, that it is ahead of the tenant owed most."""


@dataclass(frozen=True, slots=True)
class Ledger:
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

    def with_band(self, offline: bool, accounts: Accounts) -> Ledger:
        """The ledger with one of the two replaced."""
        return Ledger(self.online, accounts) if offline else Ledger(accounts, self.offline)


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
