//! Connections of members, of strangers, and of a machine between both ends.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::proof::{self, ANSWER_BYTES, CLAIM_BYTES, EXPORTER};
use super::*;
use crate::{IdentityKey, Stream};

const TIMEOUT: Duration = Duration::from_secs(20);

fn founders() -> Secret {
    Secret::generate().expect("a secret")
}

fn identity() -> IdentityKey {
    IdentityKey::generate().expect("a key")
}

fn server(secret: &Secret) -> ServerSecurity {
    ServerSecurity::new(secret.clone(), &identity()).expect("a server")
}

fn client(secret: &Secret) -> ClientSecurity {
    ClientSecurity::new(secret.clone()).expect("a client")
}

fn stream(pipe: DuplexStream) -> Stream {
    let (reader, writer) = tokio::io::split(pipe);
    Stream::new(reader, writer)
}

fn pipe() -> (Stream, Stream) {
    let (client, server) = tokio::io::duplex(1 << 16);
    (stream(client), stream(server))
}

/// Connects a client to a server and returns the results of both.
async fn connect(
    client: &ClientSecurity,
    server: &ServerSecurity,
) -> (io::Result<Stream>, io::Result<(Stream, Rights)>) {
    let (client_end, server_end) = pipe();
    let both = async { tokio::join!(client.connect(client_end, None), server.accept(server_end)) };
    tokio::time::timeout(TIMEOUT, both).await.expect("no end waits for ever")
}

/// Returns the refusal that an error contains.
fn refusal<T>(result: io::Result<T>) -> Option<SecurityError> {
    result.err()?.get_ref()?.downcast_ref().copied()
}

#[tokio::test]
async fn holder_of_secret_is_admitted_with_its_rights() {
    let founders = founders();
    let server = server(&founders);
    for rights in Rights::ALL {
        let secret = founders.derive(rights).expect("a founder's");
        let (client, accepted) = connect(&client(&secret), &server).await;
        let (mut client, (mut server, granted)) = (client.expect("connected"), accepted.expect("accepted"));
        assert_eq!((granted, server.rights), (rights, rights));
        client.writer.write_all(b"question").await.expect("written");
        client.writer.flush().await.expect("flushed");
        let mut text = [0; 8];
        server.reader.read_exact(&mut text).await.expect("read");
        assert_eq!(&text, b"question");
        server.writer.write_all(b"answer").await.expect("written");
        server.writer.flush().await.expect("flushed");
        let mut text = [0; 6];
        client.reader.read_exact(&mut text).await.expect("read");
        assert_eq!(&text, b"answer");
    }
}

#[tokio::test]
async fn connection_that_breaks_ends_like_a_plain_one() {
    let founders = founders();
    let (client, accepted) = connect(&client(&founders), &server(&founders)).await;
    let mut client = client.expect("connected");
    drop(accepted);
    let mut rest = Vec::new();
    assert_eq!(client.reader.read_to_end(&mut rest).await.expect("the end"), 0);
}

#[tokio::test]
async fn other_secret_is_refused_on_both_sides() {
    let (client, accepted) = connect(&client(&founders()), &server(&founders())).await;
    assert_eq!((refusal(client), refusal(accepted)), (Some(SecurityError::Refused), Some(SecurityError::Refused)));
}

#[tokio::test]
async fn new_epoch_revokes_observers_and_clients() {
    let old = founders();
    let server = server(&old.next_epoch().expect("an epoch"));
    for rights in [Rights::Observer, Rights::Client] {
        let secret = old.derive(rights).expect("a founder's");
        let (client, accepted) = connect(&client(&secret), &server).await;
        let expected = Some(SecurityError::Epoch { epoch: 0, current: 1 });
        assert_eq!((refusal(client), refusal(accepted)), (expected, expected));
    }
    let (client, accepted) = connect(&client(&old), &server).await;
    assert!(client.is_ok() && accepted.is_ok(), "servers stay");
}

#[tokio::test]
async fn new_content_of_the_file_holds_from_the_next_connection_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("secret");
    let (secret, _) = Secret::read_or_create(&path).expect("created");
    let server = ServerSecurity::from_file(&path, &identity()).expect("a server");
    let member = client(&secret.derive(Rights::Client).expect("a founder's"));
    assert!(connect(&member, &server).await.0.is_ok());
    let next = secret.next_epoch().expect("an epoch");
    next.write(&path).expect("written");
    let revoked = Some(SecurityError::Epoch { epoch: 0, current: 1 });
    assert_eq!(refusal(connect(&member, &server).await.0), revoked);
    let member = client(&next.derive(Rights::Client).expect("a founder's"));
    assert!(connect(&member, &server).await.0.is_ok());
    // A copy that others can read is not used until its mode changes.
    let set_mode = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("changed");
    next.next_epoch().expect("an epoch").write(&path).expect("written");
    set_mode(0o644);
    assert!(connect(&member, &server).await.0.is_ok(), "the earlier secret holds");
    set_mode(0o600);
    let revoked = Some(SecurityError::Epoch { epoch: 1, current: 2 });
    assert_eq!(refusal(connect(&member, &server).await.0), revoked);
}

/// Returns true if the secret of an accepted connection is revoked.
async fn is_revoked(accepted: &mut Stream, timeout: Duration) -> bool {
    tokio::time::timeout(timeout, accepted.revocation.revoked()).await.is_ok()
}

#[tokio::test]
async fn new_epoch_in_the_file_revokes_open_connections_but_those_of_servers() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("secret");
    let (secret, _) = Secret::read_or_create(&path).expect("created");
    let server = ServerSecurity::from_file(&path, &identity()).expect("a server");
    let mut open = Vec::new();
    for rights in Rights::ALL {
        let member = client(&secret.derive(rights).expect("a founder's"));
        open.push(connect(&member, &server).await.1.expect("accepted").0);
    }
    server.refresh();
    for accepted in &mut open {
        assert!(!is_revoked(accepted, Duration::from_millis(50)).await, "{:?}", accepted.rights);
    }
    secret.next_epoch().expect("an epoch").write(&path).expect("written");
    server.refresh();
    assert!(is_revoked(&mut open[0], TIMEOUT).await && is_revoked(&mut open[1], TIMEOUT).await);
    assert!(!is_revoked(&mut open[2], Duration::from_millis(50)).await, "servers have no epoch");
    founders().write(&path).expect("written");
    server.refresh();
    assert!(is_revoked(&mut open[2], TIMEOUT).await, "another founder's secret revokes servers too");
}

#[tokio::test]
async fn client_uses_the_new_content_of_its_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("client");
    let next = founders().next_epoch().expect("an epoch");
    let server = server(&next);
    let outdated = Secret::from_founders_key(*next.founders_key().expect("a founder's"), 0).expect("a secret");
    outdated.derive(Rights::Client).expect("a founder's").write(&path).expect("written");
    let member = ClientSecurity::from_file(&path).expect("a client");
    let revoked = Some(SecurityError::Epoch { epoch: 0, current: 1 });
    assert_eq!(refusal(connect(&member, &server).await.0), revoked);
    next.derive(Rights::Client).expect("a founder's").write(&path).expect("written");
    assert!(connect(&member, &server).await.0.is_ok());
}

#[tokio::test]
async fn server_with_a_derived_secret_convinces_no_client() {
    let founders = founders();
    let client_secret = founders.derive(Rights::Client).expect("a founder's");
    // Its key makes valid proofs of a client, and it accepts what it cannot check.
    let (client_end, mut server_end) = pipe();
    let impostor = async {
        let config = tls::server_config(&identity()).expect("options");
        let joined = tokio::io::join(&mut server_end.reader, &mut server_end.writer);
        let mut tls = TlsAcceptor::from(config).accept(joined).await.expect("a handshake");
        let mut claim = [0; CLAIM_BYTES];
        tls.read_exact(&mut claim).await.expect("a claim");
        let exported = tls.get_ref().1.export_keying_material([0; 32], EXPORTER, None).expect("a value");
        let answer = proof::answer(&client_secret, Ok(Rights::Client), &exported).expect("an answer");
        tls.write_all(&answer).await.expect("written");
        tls.flush().await.expect("flushed");
    };
    let victim = client(&client_secret);
    let (result, ()) = tokio::join!(victim.connect(client_end, None), impostor);
    assert_eq!(refusal(result), Some(SecurityError::Stranger));
}

#[tokio::test]
async fn machine_in_the_middle_cannot_pass_proofs_on() {
    let founders = founders();
    let (client_end, mut middle_server) = pipe();
    let (mut middle_client, server_end) = pipe();
    let middle = async {
        let config = tls::server_config(&identity()).expect("options");
        let joined = tokio::io::join(&mut middle_server.reader, &mut middle_server.writer);
        let mut to_client = TlsAcceptor::from(config).accept(joined).await.expect("a handshake");
        let joined = tokio::io::join(&mut middle_client.reader, &mut middle_client.writer);
        let connector = TlsConnector::from(tls::client_config().expect("options"));
        let mut to_server = connector.connect(tls::server_name(), joined).await.expect("a handshake");
        let mut claim = [0; CLAIM_BYTES];
        to_client.read_exact(&mut claim).await.expect("a claim");
        to_server.write_all(&claim).await.expect("written");
        to_server.flush().await.expect("flushed");
        let mut answer = [0; ANSWER_BYTES];
        to_server.read_exact(&mut answer).await.expect("an answer");
        to_client.write_all(&answer).await.expect("written");
        to_client.flush().await.expect("flushed");
    };
    let (client, server) = (client(&founders), server(&founders));
    let all = async { tokio::join!(client.connect(client_end, None), server.accept(server_end), middle) };
    let (connected, accepted, ()) = tokio::time::timeout(TIMEOUT, all).await.expect("an end");
    assert_eq!((refusal(connected), refusal(accepted)), (Some(SecurityError::Refused), Some(SecurityError::Refused)));
}

#[test]
fn claim_and_answer_are_bound_to_connection_rights_and_direction() {
    let founders = founders();
    let client = founders.derive(Rights::Client).expect("a founder's");
    let (here, elsewhere) = ([1; 32], [2; 32]);
    let claim = proof::claim(&client, &here);
    assert_eq!(proof::check_claim(&founders, &claim, &here), Ok(Rights::Client));
    assert_eq!(proof::check_claim(&founders, &claim, &elsewhere), Err(SecurityError::Refused), "replayed");
    for i in 0..CLAIM_BYTES {
        let mut changed = claim;
        changed[i] ^= 1;
        assert!(proof::check_claim(&founders, &changed, &here).is_err(), "byte {i}");
    }
    let answer = proof::answer(&founders, Ok(Rights::Client), &here).expect("an answer");
    assert_eq!(proof::check_answer(&client, &answer, &here), Ok(()));
    assert_eq!(proof::check_answer(&client, &answer, &elsewhere), Err(SecurityError::Stranger), "replayed");
    let observer = founders.derive(Rights::Observer).expect("a founder's");
    assert_eq!(proof::check_answer(&observer, &answer, &here), Err(SecurityError::Stranger), "of other rights");
    // A claim sent back is no answer.
    let mut reflected = [0; ANSWER_BYTES];
    reflected[5..5 + 32].copy_from_slice(&claim[6..]);
    assert_eq!(proof::check_answer(&client, &reflected, &here), Err(SecurityError::Stranger), "reflected");
}

#[tokio::test]
async fn plain_client_gets_an_answer_that_it_reads() {
    let (mut client_end, server_end) = pipe();
    let plain = async {
        client_end.writer.write_all(b"SPL5 and more of a message").await.expect("written");
        let mut answer = Vec::new();
        client_end.reader.read_to_end(&mut answer).await.expect("read");
        drop(client_end);
        answer
    };
    let server = server(&founders());
    let both = async { tokio::join!(plain, server.accept(server_end)) };
    let (answer, accepted) = tokio::time::timeout(TIMEOUT, both).await.expect("an end");
    assert_eq!(answer, SECRET_NEEDED);
    assert_eq!(refusal(accepted), Some(SecurityError::PlainClient));
}

#[tokio::test]
async fn plain_server_is_named() {
    for answer in [&b""[..], &b"SPL5 is no TLS, and a client that expects it must end"[..]] {
        let (client_end, mut server_end) = pipe();
        let plain = async {
            // A server reads the header of a message, finds another one, and closes the connection.
            let mut header = [0; 20];
            server_end.reader.read_exact(&mut header).await.expect("read");
            server_end.writer.write_all(answer).await.expect("written");
            drop(server_end);
        };
        let client = client(&founders());
        let both = async { tokio::join!(client.connect(client_end, None), plain) };
        let (connected, ()) = tokio::time::timeout(TIMEOUT, both).await.expect("an end");
        assert_eq!(refusal(connected), Some(SecurityError::PlainServer));
    }
}

#[tokio::test]
async fn pinned_key_is_compared() {
    let (founders, identity) = (founders(), identity());
    let server = ServerSecurity::new(founders.clone(), &identity).expect("a server");
    let client = client(&founders);
    let other = IdentityKey::generate().expect("a key").public();
    for (pinned, expected) in [
        (identity.public(), None),
        (other, Some(SecurityError::OtherKey { expected: other, found: identity.public() })),
    ] {
        let (client_end, server_end) = pipe();
        let both = async { tokio::join!(client.connect(client_end, Some(pinned)), server.accept(server_end)) };
        let (connected, _) = tokio::time::timeout(TIMEOUT, both).await.expect("an end");
        assert_eq!(refusal(connected), expected);
    }
}
