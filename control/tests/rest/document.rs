//! The OpenAPI document says what there is.

use crate::{Api, HOST};

#[tokio::test]
async fn the_document_has_every_route_with_its_problems() {
    let api = Api::new();
    let document = api
        .send("GET", "/openapi.json", "", &[("host", HOST)])
        .await
        .json();
    assert_eq!(document["openapi"], "3.1.0");
    let paths = document["paths"].as_object().unwrap();
    let mut operations: Vec<String> = paths
        .iter()
        .flat_map(|(path, item)| {
            item.as_object()
                .unwrap()
                .keys()
                .map(move |method| format!("{method} {path}"))
        })
        .collect();
    operations.sort();
    assert_eq!(
        operations,
        [
            "delete /v1/hybridconnections/{name}",
            "get /healthz",
            "get /readyz",
            "get /v1/hybridconnections",
            "get /v1/hybridconnections/{name}",
            "get /v1/namespace",
            "get /v1/status",
            "post /v1/hybridconnections/{name}/listKeys",
            "post /v1/hybridconnections/{name}/probe",
            "post /v1/hybridconnections/{name}/regenerateKey",
            "put /v1/hybridconnections/{name}",
        ]
    );
    for operation in paths
        .values()
        .flat_map(|item| item.as_object().unwrap().values())
    {
        assert_eq!(
            operation["responses"]["default"]["content"]["application/problem+json"]["schema"]["$ref"],
            "#/components/schemas/Problem"
        );
    }
    assert_eq!(
        document["components"]["securitySchemes"]["sas"]["name"],
        "Authorization"
    );
    assert_eq!(
        paths["/healthz"]["get"]["security"],
        serde_json::json!([{}])
    );
}
