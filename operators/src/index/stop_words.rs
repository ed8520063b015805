//! Stop words by language, after the Snowball project's lists (BSD 3-clause, snowballstem.org).
//!
//! Words with an apostrophe are left out: no run of an analyzer contains one. Languages for which
//! Snowball publishes no list have none here.

use std::sync::LazyLock;

use ahash::AHashSet;
use rust_stemmers::Algorithm;

/// The stop words of a language, lower case; empty where there is no list.
pub(super) fn of(language: Algorithm) -> &'static AHashSet<&'static str> {
    static SETS: LazyLock<Vec<AHashSet<&'static str>>> = LazyLock::new(|| {
        LISTS
            .iter()
            .map(|(_, words)| words.split_whitespace().collect())
            .collect()
    });
    static EMPTY: LazyLock<AHashSet<&'static str>> = LazyLock::new(AHashSet::default);
    match LISTS.iter().position(|(known, _)| *known == language) {
        Some(index) => &SETS[index],
        None => &EMPTY,
    }
}

const LISTS: &[(Algorithm, &str)] = &[
    (
        Algorithm::English,
        "i me my myself we our ours ourselves you your yours yourself yourselves he him his himself
         she her hers herself it its itself they them their theirs themselves what which who whom
         this that these those am is are was were be been being have has had having do does did
         doing would should could ought cannot a an the and but if or because as until while of at
         by for with about against between into through during before after above below to from up
         down in out on off over under again further then once here there when where why how all
         any both each few more most other some such no nor not only own same so than too very",
    ),
    (
        Algorithm::German,
        "aber alle allem allen aller alles als also am an ander andere anderem anderen anderer
         anderes auch auf aus bei bin bis bist da damit dann der den des dem die das daß derselbe
         dazu dein deine deinem deinen deiner deines denn dich dir du dies diese diesem diesen
         dieser dieses doch dort durch ein eine einem einen einer eines einig einige einmal er ihn
         ihm es etwas euer eure für gegen gewesen hab habe haben hat hatte hatten hier hin hinter
         ich mich mir ihr ihre ihrem ihren ihrer ihres euch im in indem ins ist jede jedem jeden
         jeder jedes jene jetzt kann kein keine keinem keinen keiner können könnte machen man
         manche mein meine meinem meinen meiner mit muss musste nach nicht nichts noch nun nur ob
         oder ohne sehr sein seine seinem seinen seiner selbst sich sie ihnen sind so solche soll
         sollte sondern sonst über um und uns unser unter viel vom von vor während war waren warst
         was weg weil weiter welche welchem welchen welcher welches wenn werde werden wie wieder
         will wir wird wirst wo wollen wollte würde würden zu zum zur zwar zwischen",
    ),
];
