//! Containers as their runtimes know them.

use anyhow::Result;

use super::ports::is_alive;
use super::{Agent, Port};
use crate::api::attachments::AttachmentRef;

impl Agent {
    fn attached(&self, which: &AttachmentRef) -> Vec<Port> {
        let wanted = |port: &&Port| {
            let ifname = which.ifname.as_ref();
            port.local.attachment.as_ref() == Some(&which.attachment)
                && ifname.is_none_or(|ifname| *ifname == port.local.ifname)
        };
        self.state.ports().filter(wanted).cloned().collect()
    }

    /// Removes what was attached for a runtime's container. None is no error: it may be told
    /// twice, or of one whose namespace has gone already.
    pub(super) async fn attachments_remove(&mut self, which: &AttachmentRef) -> Result<Vec<Port>> {
        let ports = self.attached(which);
        for port in &ports {
            self.port_remove(port).await?;
        }
        Ok(ports)
    }

    /// What was attached, and what is wrong with it in the kernel.
    pub(super) async fn attachment_check(
        &self,
        which: &AttachmentRef,
    ) -> Result<(Vec<Port>, Vec<String>)> {
        let ports = self.attached(which);
        let interfaces = self.interfaces().await?;
        let hooks = self.hooks_now().await?;
        let mut problems = Vec::new();
        for port in &ports {
            let local = &port.local;
            let looked = match is_alive(port, &interfaces) {
                true => self.look_inside(port).await,
                false => Err(format!("its port {} is gone", local.port)),
            };
            problems.extend(looked.err());
            let unhooked = hooks
                .iter()
                .any(|hook| hook.ifindex == local.port_ifindex && hook.attached == "MISSING");
            if unhooked {
                problems.push(format!("the program on its port {} is gone", local.port));
            }
        }
        Ok((ports, problems))
    }
}
