//! The gate's tables. Lower case; one concept a line.

/// Words that say yes (first list) or no (second list) to the same concept, as stems or phrases of
/// two words. Opposites across the lists change the answer.
pub(super) const POLAR: &[(&[&str], &[&str])] = &[
    (
        &["enable", "enables", "enabled", "enabling", "activate", "activated", "activating",
          "turn on", "turning on", "turned on", "switch on", "switching on", "switched on", "on"],
        &["disable", "disables", "disabled", "disabling", "deactivate", "deactivated",
          "deactivating", "turn off", "turning off", "turned off", "switch off", "switching off",
          "switched off", "off"],
    ),
    (
        &["allow", "allows", "allowed", "allowing", "permit", "permits", "permitted", "permitting",
          "grant", "grants", "granted", "approve", "approved", "accept", "accepts", "accepted",
          "accepting", "unblock", "unblocked", "authorise", "authorize", "whitelist"],
        &["deny", "denies", "denied", "denying", "forbid", "forbids", "forbidden", "prohibit",
          "prohibits", "prohibited", "block", "blocks", "blocked", "blocking", "reject", "rejects",
          "rejected", "rejecting", "refuse", "refused", "revoke", "revoked", "revoking", "ban",
          "banned", "blacklist"],
    ),
    (
        &["add", "adds", "added", "adding", "create", "creates", "created", "creating", "insert",
          "inserted", "inserting"],
        &["remove", "removes", "removed", "removing", "delete", "deletes", "deleted", "deleting",
          "erase", "erased", "rid"],
    ),
    (
        &["start", "starts", "started", "starting", "begin", "begins", "resume", "resumed",
          "continue"],
        &["stop", "stops", "stopped", "stopping", "halt", "pause", "paused", "end", "ends",
          "cancel", "cancels", "cancelled", "canceled", "cancelling", "terminate", "terminated"],
    ),
    (
        &["open", "opens", "opened", "opening"],
        &["close", "closes", "closed", "closing", "shut"],
    ),
    (
        &["increase", "increases", "increased", "increasing", "raise", "raised", "raising",
          "expand", "upgrade", "upgraded", "upgrading", "higher"],
        &["decrease", "decreases", "decreased", "decreasing", "reduce", "reduces", "reduced",
          "reducing", "lower", "lowered", "lowering", "shrink", "downgrade", "downgraded",
          "downgrading"],
    ),
    (
        &["include", "includes", "included", "including"],
        &["exclude", "excludes", "excluded", "excluding", "except"],
    ),
    (&["lock", "locked", "locking"], &["unlock", "unlocked", "unlocking"]),
    (&["install", "installed", "installing"], &["uninstall", "uninstalled", "uninstalling"]),
    (&["encrypt", "encrypted", "encrypting"], &["decrypt", "decrypted", "decrypting"]),
    (&["connect", "connected", "connecting"], &["disconnect", "disconnected", "disconnecting"]),
    (&["subscribe", "subscribed"], &["unsubscribe", "unsubscribed"]),
    (
        &["login", "log in", "logging in", "sign in", "signing in", "signin"],
        &["logout", "log out", "logging out", "sign out", "signing out", "signout"],
    ),
    (&["show", "shows", "shown", "display"], &["hide", "hides", "hidden", "hiding"]),
    (&["join", "joined", "joining"], &["leave", "leaving", "left"]),
    (&["succeed", "succeeds", "success", "works", "working", "pass", "passes"],
     &["fail", "fails", "failed", "failing", "failure", "broken"]),
    (&["safe", "secure"], &["unsafe", "dangerous", "insecure"]),
    (&["possible", "able"], &["impossible", "unable"]),
    (&["public"], &["private"]),
    (&["always"], &["never"]),
    (&["true"], &["false"]),
];

/// Opposites neither of which is a negation of the other.
pub(super) const DIRECTED: &[(&[&str], &[&str])] = &[
    (&["before", "prior"], &["after", "following"]),
    (&["import", "imports", "imported", "importing"],
     &["export", "exports", "exported", "exporting"]),
    (&["upload", "uploads", "uploaded", "uploading"],
     &["download", "downloads", "downloaded", "downloading"]),
    (&["send", "sends", "sent", "sending"], &["receive", "receives", "received", "receiving"]),
    (&["buy", "buys", "bought", "buying", "purchase"], &["sell", "sells", "sold", "selling"]),
    (&["push", "pushed", "pushing"], &["pull", "pulled", "pulling"]),
    (&["read", "reads", "reading"], &["write", "writes", "writing"]),
    (&["encode", "encoding"], &["decode", "decoding"]),
    (&["compress", "compressing"], &["decompress", "extract", "extracting"]),
    (&["maximum", "max", "most", "largest", "biggest", "highest"],
     &["minimum", "min", "least", "smallest", "lowest"]),
    (&["more", "over", "above", "greater"], &["less", "fewer", "under", "below"]),
    (&["first", "earliest", "oldest", "beginning"], &["last", "latest", "newest"]),
    (&["internal", "inside", "inbound", "incoming"],
     &["external", "outside", "outbound", "outgoing"]),
    (&["up", "upward"], &["down", "downward"]),
    (&["top"], &["bottom"]),
    (&["ascending"], &["descending"]),
    (&["client"], &["server"]),
    (&["employer"], &["employee"]),
    (&["lend", "lending"], &["borrow", "borrowing"]),
    (&["deposit", "deposits"], &["withdraw", "withdrawal", "withdrawals"]),
    (&["import duty"], &["export duty"]),
];

/// Words that turn a sentence around.
pub(super) const NEGATIONS: &[&str] = &[
    "not", "no", "without", "cannot", "none", "neither", "nor", "nothing", "nobody", "nowhere",
    "hardly", "cant", "dont", "doesnt", "didnt", "isnt", "arent", "wasnt", "wont", "wouldnt",
    "shouldnt", "couldnt", "havent", "hasnt", "non", "lack", "lacks", "lacking",
];

/// Prefixes that turn a word around; the rest must be a word of the other question.
pub(super) const OPPOSITE_PREFIXES: &[&str] = &["un", "dis", "in", "im", "ir", "il", "non", "de", "mis"];

/// Words that carry no content of their own in a question.
pub(super) const STOP_WORDS: &[&str] = &[
    "a", "an", "the", "is", "are", "was", "were", "be", "been", "am", "do", "does", "did", "doing",
    "how", "what", "whats", "which", "who", "where", "when", "why", "can", "could", "should",
    "would", "will", "shall", "may", "might", "must", "i", "me", "my", "mine", "we", "us", "our",
    "you", "your", "it", "its", "this", "that", "these", "those", "there", "of", "in", "on", "at",
    "for", "to", "from", "with", "by", "about", "into", "and", "or", "if", "as", "than", "then",
    "so", "please", "tell", "way", "ways", "steps", "step", "process", "procedure", "method",
    "want", "need", "like", "have", "has", "had", "get", "go", "going", "one", "some", "any",
    "just", "best", "possible", "able", "help", "hi", "hello", "hey", "explain", "im", "id", "s",
    "re", "ve", "ll", "d", "m", "thanks",
];

/// Prepositions whose object has a role.
pub(super) const ROLES: &[&str] =
    &["from", "to", "into", "onto", "than", "by", "before", "after", "over", "for", "with", "of", "in"];

/// Words that may stand for each other in a question.
pub(super) const SYNONYMS: &[&[&str]] = &[
    &["delete", "remove", "erase", "rid"],
    &["enable", "activate"],
    &["disable", "deactivate"],
    &["begin", "start"],
    &["stop", "halt", "end"],
    &["buy", "purchase"],
    &["price", "cost", "fee"],
    &["fix", "resolve", "solve", "repair"],
    &["error", "issue", "problem"],
    &["obtain", "receive", "acquire"],
    &["find", "locate"],
    &["show", "display", "view", "see"],
    &["make", "create", "build"],
    &["big", "large"],
    &["quick", "fast", "quickly"],
    &["use", "utilise", "utilize"],
    &["cancel", "terminate"],
    &["email", "mail"],
    &["phone", "telephone", "mobile"],
    &["picture", "image", "photo"],
    &["film", "movie"],
    &["car", "automobile"],
    &["allow", "permit", "let"],
    &["change", "modify", "alter", "edit"],
    &["reset", "recover", "restore"],
    &["configure", "set"],
    &["work", "function"],
    &["mean", "signify"],
    &["choose", "select", "pick"],
    &["company", "firm"],
    &["job", "position"],
];

/// Different spellings of one name.
pub(super) const ALIASES: &[(&str, &str)] = &[
    ("postgresql", "postgres"),
    ("javascript", "js"),
    ("typescript", "ts"),
    ("kubernetes", "k8s"),
    ("e-mail", "email"),
    ("wi-fi", "wifi"),
    ("database", "db"),
    ("application", "app"),
    ("golang", "go"),
];

/// Units and their canonical names.
pub(super) const UNITS: &[(&str, &str)] = &[
    ("ms", "ms"), ("millisecond", "ms"), ("milliseconds", "ms"),
    ("s", "s"), ("sec", "s"), ("secs", "s"), ("second", "s"), ("seconds", "s"),
    ("m", "m"), ("min", "min"), ("mins", "min"), ("minute", "min"), ("minutes", "min"),
    ("h", "h"), ("hr", "h"), ("hrs", "h"), ("hour", "h"), ("hours", "h"),
    ("day", "day"), ("days", "day"), ("week", "week"), ("weeks", "week"),
    ("month", "month"), ("months", "month"), ("year", "year"), ("years", "year"),
    ("b", "b"), ("byte", "b"), ("bytes", "b"), ("kb", "kb"), ("mb", "mb"), ("megabytes", "mb"),
    ("gb", "gb"), ("gigabytes", "gb"), ("tb", "tb"), ("gib", "gib"), ("mib", "mib"),
    ("km", "km"), ("kilometers", "km"), ("kilometres", "km"), ("miles", "mile"), ("mile", "mile"),
    ("cm", "cm"), ("mm", "mm"), ("kg", "kg"), ("g", "g"), ("lb", "lb"), ("lbs", "lb"),
    ("usd", "usd"), ("dollars", "usd"), ("dollar", "usd"), ("eur", "eur"), ("euros", "eur"),
    ("euro", "eur"), ("gbp", "gbp"), ("percent", "%"), ("pct", "%"),
];

/// Numbers in words. "one" is left out: it is mostly a pronoun.
pub(super) const NUMBER_WORDS: &[(&str, &str)] = &[
    ("zero", "0"), ("two", "2"), ("three", "3"), ("four", "4"), ("five", "5"), ("six", "6"),
    ("seven", "7"), ("eight", "8"), ("nine", "9"), ("ten", "10"), ("eleven", "11"),
    ("twelve", "12"), ("twenty", "20"), ("thirty", "30"), ("fifty", "50"), ("hundred", "100"),
    ("thousand", "1000"), ("million", "1000000"),
];
