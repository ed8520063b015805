//! A primary that dies and a standby that takes its place: the source finds it among its `HOST`s, and the
//! collection is the table of the new primary, also where that has less than the old one told.

use serde_json::json;

use crate::alone;
use crate::program::Program;
use crate::servers::postgres::Postgres;
use crate::servers::{PASSWORD, Run, USER, free_port};

fn connection(run: &Run, hosts: &[u16]) -> String {
    let secret = run.path().join("password");
    std::fs::write(&secret, PASSWORD).expect("writable");
    let hosts: Vec<String> = hosts
        .iter()
        .map(|port| format!("127.0.0.1:{port}"))
        .collect();
    format!(
        "CREATE SECRET password AS FILE '{}';
         CREATE CONNECTION pg TO POSTGRES (HOST '{}', USER '{USER}', PASSWORD SECRET password,
             DATABASE 'postgres', SLOT LOST 'copy');\n",
        secret.display(),
        hosts.join(",")
    )
}

fn rows(program: &Program, expected: &[(i64, &str)]) {
    let rows: Vec<_> = expected
        .iter()
        .map(|(id, body)| vec![json!(id), json!(body)])
        .collect();
    program.wait_rows("SELECT id, body FROM docs ORDER BY id", &rows);
}

#[test]
fn the_standby_that_became_the_primary_is_followed() {
    let _alone = alone();
    let run = Run::new("postgres-failover");
    let mut primary = Postgres::start(&run);
    primary.execute(
        "CREATE TABLE docs (id int PRIMARY KEY, body text); INSERT INTO docs VALUES (1, 'a'), (2, 'b')",
    );
    let mut standby = primary.standby(&run);
    // Nobody is at the first, the second is no primary.
    let hosts = [free_port(), standby.port, primary.port];
    let program = Program::start(&format!(
        "{}CREATE SOURCE docs FROM POSTGRES (CONNECTION pg, TABLE 'docs');",
        connection(&run, &hosts)
    ));
    rows(&program, &[(1, "a"), (2, "b")]);
    primary.execute("UPDATE docs SET body = 'both' WHERE id = 1");
    rows(&program, &[(1, "both"), (2, "b")]);
    let both = primary.value("SELECT pg_current_wal_lsn()");
    let has_both = format!("SELECT pg_last_wal_replay_lsn() >= '{both}'");
    program.wait("the standby has it", |_| standby.value(&has_both) == "t");

    // What the standby does not get any more is lost with the primary.
    standby.stop();
    primary.execute("INSERT INTO docs VALUES (3, 'lost'); DELETE FROM docs WHERE id = 2");
    rows(&program, &[(1, "both"), (3, "lost")]);
    primary.kill();
    let state = "SELECT status, error FROM headwater.sources WHERE name = 'docs'";
    program.wait("it says that no primary is there", |program| {
        let row = &program.rows(state)[0];
        row[0] == "retrying"
            && hosts.iter().all(|port| {
                let error = row[1].as_str().unwrap_or_default();
                error.contains(&format!("127.0.0.1:{port}"))
            })
    });
    standby.restart();
    program.wait("it says why the standby is not read", |program| {
        let row = &program.rows(state)[0];
        row[1]
            .as_str()
            .is_some_and(|error| error.contains("a standby, not the primary"))
    });
    // What is there is answered from meanwhile.
    rows(&program, &[(1, "both"), (3, "lost")]);
    assert_eq!(standby.value("SELECT pg_promote()"), "t");
    standby.execute("INSERT INTO docs VALUES (4, 'new')");
    rows(&program, &[(1, "both"), (2, "b"), (4, "new")]);
    standby.execute("UPDATE docs SET body = 'newer' WHERE id = 4");
    rows(&program, &[(1, "both"), (2, "b"), (4, "newer")]);
    program.wait_rows(state, &[vec![json!("running"), json!(null)]]);
}
