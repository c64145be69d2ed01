//! An idle vxlan device, for the sake of its socket on the tunnels' port.
//!
//! The kernel joins TCP segments that arrive in tunnels (GRO) only where a tunnel device of its own
//! has said what is in there. The programs take every such packet before the device could: what it
//! changes is that they get one super-packet for many segments. It also holds the port, so that no
//! other tunnel or program is given what is not ours.
//!
//! What comes in elsewhere, on an interface without our programs or for another address of the host,
//! does reach the device. It knows no VNI (`vnifilter`) and drops that: else whoever reaches the port
//! could put frames into the host's own stack.

use rtnetlink::LinkVxlan;
use rtnetlink::packet_route::link::LinkAttribute;

use crate::error::errno;
use crate::link::birth_mark;
use crate::{Error, Host, Result, sysctl};

/// How its name begins; the port follows.
const PREFIX: &str = "ovl-gro-";

/// What the device on this port is called.
pub fn name(port: u16) -> String {
    format!("{PREFIX}{port}")
}

impl Host {
    /// Makes sure of such a device on a UDP port, and of none of the same owner on another one.
    ///
    /// # Errors
    /// [`Error::errno`] is `EADDRINUSE` when something else has the port, and `EOPNOTSUPP` when the
    /// kernel has no vxlan.
    pub async fn create_outer_gro(&self, port: u16, owner: &str) -> Result<()> {
        let name = name(port);
        for link in self.links_owned_by(owner).await? {
            if link.name.starts_with(PREFIX) && !(link.name == name && link.up) {
                self.delete_owned(&link.name, owner).await?;
            }
        }
        if let Some(link) = self.link(&name).await? {
            return match link.is_marked_by(owner) {
                true => Ok(()),
                false => Err(Error::NotOurs {
                    name,
                    alias: link.alias,
                }),
            };
        }
        let message = LinkVxlan::new(&name, 0)
            .collect_metadata(true)
            .vnifilter(true)
            .learning(false)
            .port(port)
            .append_extra_attribute(LinkAttribute::Group(birth_mark(owner)))
            .build();
        match self.handle.link().add(message).execute().await {
            Ok(()) => {}
            Err(e) if errno(&e) == Some(libc::EEXIST) => return Err(Error::TakenOnHost(name)),
            Err(e) => return Err(Error::netlink(format!("create {name}"), e)),
        }
        let finish = async {
            self.mark(&name, owner).await?;
            sysctl::disable_ipv6(&name)?;
            // Its socket is made now.
            self.set_up(&name).await
        };
        let done = finish.await;
        if done.is_err()
            && let Err(e) = self.delete_link(&name).await
        {
            tracing::warn!("undoing {name}: {e}");
        }
        done
    }
}
