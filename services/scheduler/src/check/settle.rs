//! What follows from differences: they are noted, and repaired unless that would be too many.

use futures_util::future::try_join_all;
use usersync_core::{
    check::{Check as Policies, Class, Policy, Stage},
    user_id::UserId,
};

use super::{
    Check, WAITING,
    repair::Remedy,
    sides::{Seen, Sides},
};

/// Repairs under way at once.
const WINDOW: usize = 128;

impl Check<'_> {
    /// Notes those who differ, and has them repaired unless that would be too many.
    pub(super) async fn settle(
        &mut self,
        sides: &dyn Sides,
        users: &[UserId],
        seen: &[Seen],
    ) -> anyhow::Result<()> {
        let check = sides.check();
        let repairs = |class: Class| !self.request.dry_run && check.policy(class) == Policy::Repair;
        let differing: Vec<_> = users
            .iter()
            .zip(seen)
            .filter_map(|(user, seen)| match seen {
                Seen::Drift(class, remedy) => Some((user, *class, remedy)),
                _ => None,
            })
            .collect();
        let changed: Vec<&UserId> = differing
            .iter()
            .filter(|(_, class, remedy)| repairs(*class) && **remedy != Remedy::Impossible)
            .map(|(user, ..)| *user)
            .collect();
        let excused = changed.iter().filter(|user| self.given_up.contains(user));
        let excused = excused.count() as u64;
        let repaired: u64 = self.report.found.values().map(|found| found.repaired).sum();
        let counted = (repaired + changed.len() as u64).saturating_sub(self.excused + excused);
        let most = self.brake;
        let braked = !self.request.approved && counted > most;
        let (mended, noted): (Vec<_>, Vec<_>) =
            differing.into_iter().partition(|(_, class, remedy)| {
                !braked && repairs(*class) && **remedy != Remedy::Impossible
            });
        for (user, class, remedy) in noted {
            let possible = *remedy != Remedy::Impossible;
            self.note_left(check, class, user, possible);
        }
        for some in mended.chunks(WINDOW) {
            self.mend(sides.name(), some).await?;
        }
        if braked {
            self.report.stage = Stage::Braked;
            self.report.error = Some(format!(
                "more than {most} users would be changed; look at the sample, then approve it: nats req usersync.check.approve '{{\"target\":\"{}\"}}'",
                sides.name()
            ));
        }
        Ok(())
    }

    /// Notes somebody who is left as they are.
    pub(super) fn note_left(
        &mut self,
        policies: &Policies,
        class: Class,
        user: &UserId,
        possible: bool,
    ) {
        if policies.policy(class) == Policy::Ignore {
            let because = format!("`check.{class}` is `ignore`");
            self.report.accepted.note(user, Some(&because));
            return;
        }
        self.report.note(class, user, false);
        if !possible {
            self.report.cannot_repair(class);
        }
    }

    /// Has some repaired, and notes them. Who they are is stored before.
    async fn mend(&mut self, name: &str, some: &[(&UserId, Class, &Remedy)]) -> anyhow::Result<()> {
        let users = some
            .iter()
            .map(|(user, class, _)| ((*user).clone(), *class));
        self.mending.extend(users);
        self.journal.keep(self.progress()).await?;
        let scheduler = self.scheduler;
        let mending = some
            .iter()
            .map(|(user, _, remedy)| remedy.apply(scheduler, name, user));
        let mended = try_join_all(mending).await?;
        for ((user, class, remedy), mended) in some.iter().zip(mended) {
            self.mending.remove(user);
            match mended {
                true => {
                    self.report.note(*class, user, true);
                    self.excused += u64::from(self.given_up.contains(*user));
                    if remedy.is_asked_for() && self.asked.len() < WAITING {
                        self.asked.insert((*user).clone(), *class);
                    }
                }
                // Something newer came: that is no drift.
                false => self.look_later(user),
            }
        }
        Ok(())
    }
}
