//! What the texts of a request look like, for the OpenAPI document. What parses them is
//! `underpass-proto`; these say the same to programs.

use utoipa::openapi::schema::{AnyOfBuilder, Object, ObjectBuilder, SchemaType, Type};
use utoipa::openapi::{ArrayBuilder, RefOr, Schema};

/// Name of the hybrid connection.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "says how a name looks; `body::Name` reads it")]
pub(super) struct NamePath {
    /// Name of the hybrid connection
    #[param(
        pattern = "^[A-Za-z][A-Za-z0-9-]{4,48}[A-Za-z0-9]$",
        example = "payroll-sql"
    )]
    name: String,
}

/// A host name whose last part is no number (RFC 1123): a letter begins it, or ends it, or stands
/// among digits.
const HOST_NAME: &str = concat!(
    r"^([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)*",
    r"([A-Za-z_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?",
    r"|[A-Za-z0-9_][A-Za-z0-9_-]{0,61}[A-Za-z_]",
    r"|[0-9]{1,20}[A-Za-z_-][A-Za-z0-9_-]{0,40}[0-9])\.?$"
);

const OCTET: &str = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])";
const PORT: &str =
    "(6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[1-9][0-9]{0,3}|0)";
const V6: &str = "([0-9a-fA-F]{1,4}:){7}[0-9a-fA-F]{1,4}|([0-9a-fA-F]{1,4}:){1,6}:[0-9a-fA-F]{1,4}|::([0-9a-fA-F]{1,4})?";

fn v4() -> String {
    format!(r"{OCTET}(\.{OCTET}){{3}}")
}

fn text(pattern: &str, example: &str) -> Object {
    ObjectBuilder::new()
        .schema_type(SchemaType::new(Type::String))
        .pattern(Some(pattern))
        .examples([example])
        .build()
}

/// A host name, or an address.
pub(super) fn host() -> Schema {
    let name = ObjectBuilder::new()
        .schema_type(SchemaType::new(Type::String))
        .pattern(Some(HOST_NAME))
        .max_length(Some(253))
        .examples(["sql01.corp"]);
    AnyOfBuilder::new()
        .item(name)
        .item(text(&format!("^{}$", v4()), "10.0.0.7"))
        .item(text(&format!("^({V6})$"), "2001:db8::7"))
        .build()
        .into()
}

/// An address and a port; an IPv6 address stands in brackets.
pub(super) fn binding() -> Schema {
    AnyOfBuilder::new()
        .item(text(&format!("^{}:{PORT}$", v4()), "127.0.0.1:14330"))
        .item(text(&format!(r"^\[({V6})\]:{PORT}$"), "[::1]:14330"))
        .item(ObjectBuilder::new().schema_type(SchemaType::new(Type::Null)))
        .build()
        .into()
}

/// One of three words, or what older clients send.
pub(super) fn probe() -> Schema {
    let word = ObjectBuilder::new()
        .schema_type(SchemaType::new(Type::String))
        .enum_values(Some(["auto", "on", "off"]));
    let of_type = |of_type| ObjectBuilder::new().schema_type(SchemaType::new(of_type));
    AnyOfBuilder::new()
        .description(Some(
            "Whether the endpoint is dialled to learn its health: `auto` (the default) as little as is needed, `on` each minute without end, `off` never. Of older clients, `true` is `auto` and `false` is `off`.",
        ))
        .item(word)
        .item(of_type(Type::Boolean))
        .item(of_type(Type::Null))
        .build()
        .into()
}

/// Networks, or single addresses.
pub(super) fn networks() -> Schema {
    let network = AnyOfBuilder::new()
        .item(text(
            &format!("^{}(/(3[0-2]|[12]?[0-9]))?$", v4()),
            "10.0.0.0/8",
        ))
        .item(text(
            &format!("^({V6})(/(12[0-8]|1[01][0-9]|[1-9]?[0-9]))?$"),
            "2001:db8::/32",
        ))
        .build();
    ArrayBuilder::new()
        .items(RefOr::T(Schema::AnyOf(network)))
        .max_items(Some(super::wanted::NETWORKS_MAX))
        .build()
        .into()
}
