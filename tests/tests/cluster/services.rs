//! Services: every way to name a pod's port goes through the mesh, and a change reaches the proxies at once.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use tests::app::{Manner, Server, ask, refused};
use tests::cluster::{Cluster, NODES, PATIENCE, Space};
use tests::failure::{Context as _, Outcome, ensure, ensure_eq};
use tests::netns::Site;
use tests::{inside, poll, scrape};

use crate::Claim;

pub(crate) const CLAIMS: &[Claim] = &[
    (
        "services_pods_and_names_lead_through_the_mesh_in_both_families",
        every_way_leads_through_the_mesh,
    ),
    (
        "each_of_several_ports_leads_to_its_own_also_by_the_ports_name",
        several_ports,
    ),
    (
        "a_headless_services_name_leads_to_its_pods_through_the_mesh",
        headless,
    ),
    (
        "service_changes_reach_the_proxies_and_their_time_is_printed",
        changes_reach_proxies,
    ),
];

/// Changes that are measured.
const CHANGES: usize = 20;
/// What the median of them is to take at most.
const BAR: Duration = Duration::from_millis(200);

/// Makes the namespace's pods refuse everything that did not come through the mesh.
pub(crate) fn strict(space: &Space) -> Outcome {
    let policy = json!({"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": {"name": "strict"}, "spec": {"mtls": {"mode": "STRICT"}}});
    space.apply(&policy.to_string())
}

/// Waits until a client outside the mesh is refused, so that every answer after it came through the mesh.
fn wait_strict(outside: &Site, to: SocketAddr) -> Outcome {
    poll::until_ok(PATIENCE, || refused(outside, to, b""))
}

/// Sees that `to` answers and that the app sees the client's own address.
fn answers_as(client: &Site, to: SocketAddr) -> Outcome {
    let own: IpAddr = if to.is_ipv4() {
        client.addresses.v4.into()
    } else {
        client.addresses.v6.into()
    };
    // kube-proxy and the proxies learn of a Service a moment after the API server does.
    let answer = poll::until_ok(PATIENCE, || greeting(client, to))?;
    ensure_eq(
        answer.ip(),
        own,
        format_args!("whom the app behind {to} saw"),
    )
}

fn greeting(client: &Site, to: SocketAddr) -> Outcome<SocketAddr> {
    let answer = ask(client, to, b"")?;
    let seen = answer
        .trim()
        .strip_prefix("you are ")
        .context(format_args!("`{answer}`"))?;
    seen.parse().context(seen)
}

fn every_way_leads_through_the_mesh() -> Outcome {
    let space = Space::joined("ways")?;
    let outside = space.beside("outside")?;
    strict(&space)?;
    let service = space.service("server", "server", &[("app", 80, json!(8080))])?;
    let server = space.pod("server", NODES[0])?.site()?;
    let app = Server::start(&server, 8080, Manner::Whoami)?;
    let stranger = outside.pod("stranger", NODES[1])?.site()?;
    wait_strict(&stranger, app.v4())?;
    for node in NODES {
        let client = space.pod(&format!("client-{node}"), node)?.site()?;
        for to in [
            app.v4(),
            app.v6(),
            (service.addresses.v4, 80).into(),
            (service.addresses.v6, 80).into(),
        ] {
            answers_as(&client, to)?;
        }
    }
    Ok(())
}

fn several_ports() -> Outcome {
    let space = Space::joined("ports")?;
    let outside = space.beside("outside")?;
    strict(&space)?;
    let ports = [
        ("first", 80, json!("web")),
        ("second", 81, json!(9090)),
        ("third", 9999, json!("admin")),
    ];
    let service = space.service("server", "server", &ports)?;
    let server = space.pod_like("server", NODES[0], |pod| {
        let container = pod.pointer_mut("/spec/containers/0");
        if let Some(container) = container.and_then(Value::as_object_mut) {
            let ports = json!([{"name": "web", "containerPort": 8080}, {"name": "admin", "containerPort": 9999}]);
            container.insert("ports".to_owned(), ports);
        }
    })?;
    let server = server.site()?;
    let sizes = [(80, 8080, 11), (81, 9090, 22), (9999, 9999, 33)];
    let mut apps = Vec::new();
    for (_, port, size) in sizes {
        apps.push(Server::start(&server, port, Manner::Source(size as u64))?);
    }
    let stranger = outside.pod("stranger", NODES[1])?.site()?;
    wait_strict(&stranger, (server.addresses.v4, 8080).into())?;
    let client = space.pod("client", NODES[1])?.site()?;
    for (port, _, size) in sizes {
        for to in [
            SocketAddr::from((service.addresses.v4, port)),
            SocketAddr::from((service.addresses.v6, port)),
        ] {
            let got = poll::until_ok(PATIENCE, || {
                let mut got = Vec::new();
                inside::connect(&client.netns, to)?.read_to_end(&mut got)?;
                ensure(!got.is_empty(), format_args!("{to} sent nothing"))?;
                Ok::<_, tests::failure::Failure>(got.len())
            })?;
            ensure_eq(got, size, format_args!("bytes of the app behind {to}"))?;
        }
    }
    Ok(())
}

fn headless() -> Outcome {
    let space = Space::joined("headless")?;
    let outside = space.beside("outside")?;
    strict(&space)?;
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "server"}, "spec": {
        "clusterIP": "None", "selector": {"app": "server"}, "ipFamilyPolicy": "RequireDualStack",
        "ports": [{"name": "app", "port": 8080}]}});
    space.apply(&service.to_string())?;
    let server = space.pod("server", NODES[0])?.site()?;
    let app = Server::start(&server, 8080, Manner::Whoami)?;
    let stranger = outside.pod("stranger", NODES[1])?.site()?;
    wait_strict(&stranger, app.v4())?;
    let client = space.pod("client", NODES[1])?;
    let name = format!("server.{}.svc.cluster.local", space.name);
    let (v4, v6) = (
        server.addresses.v4.to_string(),
        server.addresses.v6.to_string(),
    );
    poll::until_ok(PATIENCE, || {
        let said = client.exec(&["nslookup", &name])?;
        ensure(said.contains(&v4) && said.contains(&v6), said)
    })?;
    // By name, as an app does it; the greeting names the client, so it cannot be the name server's.
    let greeted = poll::until_ok(PATIENCE, || {
        client.exec(&["sh", "-c", &format!("nc {name} 8080 </dev/null")])
    })?;
    ensure(greeted.contains("you are"), greeted)?;
    let client = client.site()?;
    answers_as(&client, app.v4())?;
    answers_as(&client, app.v6())
}

fn changes_reach_proxies() -> Outcome {
    let space = Space::alone("quick")?;
    space.join()?;
    space.service("server", "server", &[("app", 1000, json!(8080))])?;
    let proxies = NODES.map(|node| space.cluster.mesh_pod_on("ztunnel", node));
    let mut sites = Vec::new();
    for proxy in proxies {
        sites.push(proxy?.site()?);
    }
    let api = ApiProxy::start(space.cluster)?;
    let path = format!("/api/v1/namespaces/{}/services/server", space.name);
    let mut taken = Vec::new();
    let ports = (1001_u16..).take(CHANGES);
    for (port, site) in ports.zip(sites.iter().cycle()) {
        let body = json!({"spec": {"ports": [{"name": "app", "port": port, "targetPort": 8080}]}});
        let begin = poll::now();
        api.patch(&path, &body)?;
        poll::until_ok(PATIENCE, || {
            let ports = ports_of(site, &space.name)?;
            ensure_eq(
                ports,
                vec![u64::from(port)],
                "the Service's ports as the proxy has them",
            )
        })?;
        taken.push(begin.elapsed());
    }
    taken.sort();
    let median = *taken.get(CHANGES / 2).context("no change")?;
    println!(
        "a Service change reaches a proxy: median of {CHANGES} {median:?} (bar {BAR:?}), all {taken:?}"
    );
    Ok(())
}

/// The ports of the Service `server` of a namespace, as a proxy has them.
fn ports_of(proxy: &Site, namespace: &str) -> Outcome<Vec<u64>> {
    let (status, dump) = scrape::get(&proxy.netns, ([127, 0, 0, 1], 15000).into(), "/config_dump")?;
    ensure_eq(status, 200, "status of /config_dump")?;
    let dump: Value = serde_json::from_str(&dump).context("config_dump")?;
    let services = dump.get("services").and_then(Value::as_array);
    let ours = services.into_iter().flatten().find(|service| {
        service.get("name") == Some(&"server".into())
            && service.get("namespace") == Some(&namespace.into())
    });
    let ports = ours
        .context("the proxy does not know the Service")?
        .get("ports");
    let ports = ports.and_then(Value::as_object).context("no ports")?;
    ports
        .keys()
        .map(|port| port.parse().context(port))
        .collect()
}

/// `kubectl proxy`: the API server without the time that a program takes to start.
struct ApiProxy {
    child: Child,
    address: SocketAddr,
}

impl ApiProxy {
    fn start(cluster: &Cluster) -> Outcome<Self> {
        let mut child = cluster
            .kubectl_command(&["proxy", "--port=0"])
            .stdout(Stdio::piped())
            .spawn()?;
        let mut said = String::new();
        let output = child.stdout.take().context("no output")?;
        std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut said)?;
        let address = said.trim().rsplit(' ').next().context("no address")?;
        let address = address.parse().context(format_args!("`{said}`"))?;
        Ok(Self { child, address })
    }

    fn patch(&self, path: &str, body: &Value) -> Outcome {
        let body = body.to_string();
        let mut stream = TcpStream::connect(self.address)?;
        write!(
            stream,
            "PATCH {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
             content-type: application/merge-patch+json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure(answer.starts_with("HTTP/1.1 200"), answer)
    }
}

impl Drop for ApiProxy {
    fn drop(&mut self) {
        let _ends_with_the_test = self.child.kill();
        let _reaped = self.child.wait();
    }
}
