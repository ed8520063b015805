//! Notices a REPLICA IDENTITY that is not the table's key.
//!
//! PostgreSQL logs of an old row only its identity columns. With `REPLICA IDENTITY USING INDEX` the
//! key is not among them, and Connect fills what is missing with the type's zero or the column's
//! default: a delete names the row `{"id":0}`, and a changed key looks like an update of the new one.
//!
//! The idea: an invented key is always a default. A key that is not proves that keys are logged.
//!
//! | seen | proves |
//! |---|---|
//! | an update whose `before` has another key (Debezium sends true key changes as d and c) | the identity is not the key |
//! | a delete whose `before` has a key that is no default | keys are logged |
//! | a delete with a default key and another column that is none | nothing, if keys were never seen logged: refused |
//!
//! Limits: a row whose key is all defaults cannot be told from an invented one while nothing is
//! known; its delete is refused if its `before` looks like `USING INDEX`, and taken otherwise.

use engine::error::DataError;

use crate::envelope::row::Layout;
use crate::format::{ConnectSchema, Node};

/// What is known about a table's identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Known {
    #[default]
    Nothing,
    KeyIsLogged,
    IdentityIsNotKey,
}

/// Learns from the images of one table.
#[derive(Debug, Default)]
pub(super) struct Watch {
    known: Known,
}

impl Watch {
    /// An update with a `before`; true when this proves for the first time that the identity is not
    /// the key.
    pub(super) fn saw_update(
        &mut self,
        is_same_key: bool,
        layout: &Layout,
        before: &Node<'_>,
        schema: Option<&ConnectSchema>,
    ) -> bool {
        let was = self.known;
        if !is_same_key {
            self.known = Known::IdentityIsNotKey;
        } else if any_real(layout, before, schema, true) {
            self.known = Known::KeyIsLogged;
        }
        self.known == Known::IdentityIsNotKey && was != self.known
    }

    /// Refuses a delete whose key may be invented.
    pub(super) fn check_delete(
        &mut self,
        layout: &Layout,
        before: &Node<'_>,
        schema: Option<&ConnectSchema>,
    ) -> Result<(), DataError> {
        if any_real(layout, before, schema, true) {
            self.known = Known::KeyIsLogged;
            return Ok(());
        }
        match self.known {
            Known::KeyIsLogged => Ok(()),
            Known::Nothing if !any_real(layout, before, schema, false) => Ok(()),
            Known::Nothing | Known::IdentityIsNotKey => Err(refused(layout)),
        }
    }
}

/// Whether an image has a value that cannot be filled in: in its key columns, or in the others.
fn any_real(
    layout: &Layout,
    image: &Node<'_>,
    schema: Option<&ConnectSchema>,
    in_key: bool,
) -> bool {
    let Node::Object(members) = image else {
        return false;
    };
    let is_key = |name: &str| layout.key_columns().any(|column| column.name == name);
    members.iter().any(|(name, node)| {
        let field = schema.and_then(|schema| schema.field(name));
        is_key(name) == in_key && !is_default(node, field)
    })
}

fn refused(layout: &Layout) -> DataError {
    let key = layout.key_names();
    DataError::new(
        "identity-is-not-key",
        format!(
            "a delete does not name its row: the table's REPLICA IDENTITY is not its key ({key})"
        ),
    )
    .expected("REPLICA IDENTITY DEFAULT or FULL")
    .hint("ALTER TABLE … REPLICA IDENTITY DEFAULT, then read the table again")
}

/// Whether a value may have been filled in: null, the type's zero, or the column's default.
fn is_default(node: &Node<'_>, schema: Option<&ConnectSchema>) -> bool {
    let declared = schema.and_then(|schema| schema.default.as_ref());
    let is_zero = match node {
        Node::Null => true,
        Node::Bool(value) => !value,
        Node::Number(text) => text.parse::<f64>() == Ok(0.0),
        Node::Int(value) => *value == 0,
        Node::Float(value) => *value == 0.0,
        // Zero as precise NUMERIC, as text, and the epoch in its spellings.
        Node::Text(text) => {
            matches!(
                &**text,
                "" | "0" | "AA==" | "{}" | "00:00:00Z" | "00000000-0000-0000-0000-000000000000"
            ) || text.starts_with("1970-01-01")
        }
        // Zero as precise NUMERIC is one byte 0.
        Node::Bytes(bytes) => matches!(**bytes, [] | [0]),
        Node::Array(items) => items.is_empty(),
        Node::Object(members) => members.is_empty(),
        Node::Branch(_, node) => return is_default(node, None),
    };
    is_zero || declared.is_some_and(|default| *default == node.to_json())
}
